"""Python blocks of README and docs, as they are written, on the default model: they run, and their answers are right."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.eval.demo_text import DemoDocument, make_document
from asl_gguf.native.vocabulary import tokenize, vocabulary
from harness import llama_cpp  # noqa: F401  (silences llama.cpp's log in this process)

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/OPTIONS.md", "docs/POLICIES.md", "docs/INTEGRATIONS.md")
N_TOKENS = 2000
NOT_RUN = {
    "other_package": "no package of that name",
    "class Newest": "part of a module: tests/fast/policies",
}
"""what a block has in it -> why it is not run here"""


def blocks() -> dict[str, str]:
    """Page and number -> the block."""
    found = {}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, match in enumerate(re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)):
            found[f"{page}-{number}"] = match[2]
    return found


BLOCKS = blocks()


@pytest.fixture(scope="module")
def document(smollm2: Path) -> DemoDocument:
    with vocabulary(str(smollm2)) as model_vocabulary:
        return make_document(lambda text: len(tokenize(model_vocabulary, text)), N_TOKENS)


def test_every_reason_is_needed():
    for mark in NOT_RUN:
        assert any(mark in block for block in BLOCKS.values()), mark


@pytest.mark.parametrize("budget", ["0.1", "0.2"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block(smollm2, document, tmp_path, monkeypatch, name, budget):
    block = BLOCKS[name]
    if reason := next((reason for mark, reason in NOT_RUN.items() if mark in block), None):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    chat = Llama.create_chat_completion  # its default temperature draws: the likeliest tokens repeat
    monkeypatch.setattr(Llama, "create_chat_completion", lambda *args, **more: chat(*args, temperature=0.0, **more))
    program = block.replace("model.gguf", str(smollm2)).replace("asl_budget=0.1", f"asl_budget={budget}")
    assert program != block, "no model in it"
    names: dict[str, Any] = {"document": document.text, "question": f"\n\n{document.question}"}
    if "import" not in program:
        program = f"from asl_gguf import Llama\n{program}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(program, names)
    llm = names["llm"]
    try:
        if "answer" in names:
            assert document.answer in text_of(names["answer"])
            assert llm.last_prefill.pruned
            assert llm.last_prefill.kept_tokens == int(float(budget) * llm.last_prefill.prompt_tokens)
            if "load_prompt" in program:
                assert llm.last_prefill.reused_tokens > 0.9 * N_TOKENS
    finally:
        llm.close()


def text_of(answer: Any) -> str:
    choice = answer["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]
