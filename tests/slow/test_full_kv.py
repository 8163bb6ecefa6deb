"""A chat about one document on the default model: the second question selects from K/V of all tokens."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.eval.demo_text import make_document

SHARED: dict[str, Any] = {"n_ctx": 2048, "n_threads": 2, "n_threads_batch": 2, "asl_budget": 0.2, "asl_full_kv": True}


@pytest.fixture(scope="module")
def document(smollm2: Path) -> Any:
    with closing(Llama(str(smollm2), n_ctx=512)) as llm:
        return make_document(lambda text: len(llm.tokenize(text.encode())), 1400)


def test_a_second_question_finds_what_the_first_did_not_ask_for(smollm2, document):
    messages = [{"role": "user", "content": f"{document.text}\n\nWhat is this text about? Answer in a few words."}]
    with closing(Llama(str(smollm2), **SHARED)) as llm:
        first = llm.create_chat_completion(messages, max_tokens=16, temperature=0)["choices"][0]["message"]
        n_first = llm.last_prefill.prompt_tokens
        messages += [first, {"role": "user", "content": document.question}]
        answer = llm.create_chat_completion(messages, max_tokens=24, temperature=0)["choices"][0]["message"]["content"]
        report = llm.last_prefill
    assert document.answer in answer
    assert report.reused_tokens == n_first and report.token_layers < 0.4 * report.prompt_tokens * report.n_layer
    assert report.pruned and 0 < report.full_kv_bytes


def test_a_saved_document_answers_any_question(smollm2, document, tmp_path):
    start = f"<|im_start|>user\n{document.text}"
    with closing(Llama(str(smollm2), **SHARED)) as llm:
        n_document = llm.prefill(start).prompt_tokens
        llm.save_prompt(tmp_path / "document.asl")
    with closing(Llama(str(smollm2), **SHARED)) as llm:
        llm.load_prompt(tmp_path / "document.asl")
        prompt = f"{start}\n\n{document.question}<|im_end|>\n<|im_start|>assistant\n"
        answer = llm(prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
        assert document.answer in answer and llm.last_prefill.reused_tokens >= n_document - 32
