"""Twenty turns about a document of 4,000 tokens, on the default model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.eval.demo_text import make_document
from harness import llama_cpp

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


def logits(llm: Llama) -> np.ndarray:
    """float32 [n_vocab]: of the last token that was evaluated."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()


@pytest.fixture(scope="module")
def document(smollm2: Path) -> str:
    with contextlib.closing(Llama(str(smollm2), vocab_only=True)) as llm:
        return make_document(lambda text: len(llm.tokenize(text.encode())), N_TOKENS).text


def test_twenty_turns(smollm2, document):
    """Each turn goes on from the state, until the cells are full; then the whole prompt is pruned again.

    Every answer, and the logits at its end bit for bit, are those of a witness: an object that was made for the prompt that
    was pruned last, and has seen what goes on from it, but nothing before.
    """
    messages = [{"role": "user", "content": f"{document}\n\n{QUESTIONS[0]}"}]
    reused, again = [], []
    with contextlib.closing(Llama(str(smollm2), **OPTIONS)) as llm, contextlib.ExitStack() as witnesses:
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
                witnesses.close()
                witness = witnesses.enter_context(contextlib.closing(Llama(str(smollm2), **OPTIONS)))
            assert ask(witness, messages) == answer
            assert witness.last_prefill.reused_tokens == report.reused_tokens
            assert witness.last_prefill.selected == report.selected and np.array_equal(logits(witness), logits(llm))
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]},
            ]
        another = [{"role": "user", "content": f"{document}\n\n{QUESTIONS[3]}"}]
        answer = ask(llm, another)
        assert llm.last_prefill.reused_tokens == 0
        with contextlib.closing(Llama(str(smollm2), **OPTIONS)) as fresh:
            assert ask(fresh, another) == answer and np.array_equal(logits(fresh), logits(llm))
    assert again[0] == 0 and 2 <= len(again) <= 4
    assert len(reused) == N_TURNS - len(again)
