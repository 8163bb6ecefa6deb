"""Twenty turns about a document of 4,000 tokens, on the default model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.demo_text import make_document

N_TOKENS = 4000
N_TURNS = 20
N_ANSWER = 16
OPTIONS = {"n_ctx": 8192, "n_threads": 2, "n_threads_batch": 2, "asl_budget": 0.1, "asl_decode_ctx": 768}
QUESTIONS = (
    "Who kept the log?",
    "What was the weather like?",
    "Name one visitor.",
    "What happened to the lamp?",
    "Summarise the last entry in one sentence.",
)


def ask(llm: Llama, messages: list[dict[str, str]]) -> str:
    answer: Any = llm.create_chat_completion(messages, max_tokens=N_ANSWER, temperature=0.0)
    return answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def document(smollm2: Path) -> str:
    with contextlib.closing(Llama(str(smollm2), vocab_only=True)) as llm:
        return make_document(lambda text: len(llm.tokenize(text.encode())), N_TOKENS).text


def test_twenty_turns(smollm2, document):
    """Each turn goes on from the state, until the cells are full; then the whole prompt is pruned again, and the
    answer is a fresh object's."""
    messages = [{"role": "user", "content": f"{document}\n\n{QUESTIONS[0]}"}]
    reused, again = [], []
    with contextlib.closing(Llama(str(smollm2), **OPTIONS)) as llm:
        for turn in range(N_TURNS):
            answer = ask(llm, messages)
            report = llm.last_prefill
            assert report is not None
            if report.reused_tokens:
                reused.append(turn)
                assert report.prompt_tokens - report.reused_tokens < 100 and report.kept_tokens <= llm.n_cells
            else:
                again.append(turn)
                assert report.pruned and report.kept_tokens == report.prompt_tokens // 10
                assert (report.reason is None) == (turn == 0) and (turn == 0 or "pruned again" in report.reason)
                with contextlib.closing(Llama(str(smollm2), **OPTIONS)) as fresh:
                    assert ask(fresh, messages) == answer
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]},
            ]
    assert again[0] == 0 and 2 <= len(again) <= 4
    assert len(reused) == N_TURNS - len(again)
