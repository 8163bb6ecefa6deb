"""docs/INTEGRATIONS.md as it is written, with the real packages and the default model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.eval.demo_text import DemoDocument, make_document
from asl_gguf.native.vocabulary import tokenize, vocabulary
from harness import llama_cpp

PAGE = Path(__file__).parents[2] / "docs" / "INTEGRATIONS.md"
INSTALL = "not installed; to run these tests: pip install -e '.[test,ecosystem]'"
N_TOKENS = 1500
GREEDY = {"max_tokens": 32, "temperature": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the packages' own


@pytest.fixture(scope="module")
def document(smollm2: Path) -> DemoDocument:
    with vocabulary(str(smollm2)) as model_vocabulary:
        return make_document(lambda text: len(tokenize(model_vocabulary, text)), N_TOKENS)


def block(heading: str, kind: str) -> str:
    """The first block of a section of the page."""
    return re.search(rf"^## {heading}\n.*?^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


def programs(heading: str, smollm2: Path) -> tuple[str, str]:
    """A section's program before and after its change."""
    lines = block(heading, "diff").splitlines()
    removed, added = ([line for line in lines if line.startswith(sign)] for sign in "-+")
    assert len(removed) == 1 and len(added) == 2 and added[0] == "+from asl_gguf import pruned"
    before, after = (
        "\n".join(line[1:] for line in lines if not line.startswith(sign)).replace("model.gguf", str(smollm2))
        for sign in "+-"
    )
    return before, after


def run_program(text: str) -> Any:
    found: dict[str, Any] = {}
    exec(text, found)
    return found["llm"]


def assert_pruned(llm: Any, target: Any, document: DemoDocument, *answers: str) -> None:
    """The number is in every answer, and a fifth of the prompt was kept for it."""
    assert all(document.answer in answer for answer in answers), answers
    report = target.last_prefill
    assert report.pruned and report.prompt_tokens > N_TOKENS and report.kept_tokens == report.prompt_tokens // 5
    assert llama_cpp.Llama.__module__ == "llama_cpp.llama"


def test_langchain_chat(smollm2, document):
    pytest.importorskip("langchain_community.chat_models", reason=f"langchain-community {INSTALL}")
    before, after = programs("LangChain, chat", smollm2)
    assert type(run_program(before).client) is llama_cpp.Llama
    llm = run_program(after)
    question = f"{document.text}\n\n{document.question}"
    answer = llm.invoke(question, **GREEDY).content
    assert_pruned(llm, llm.client, document, answer)
    chunks = [chunk.content for chunk in llm.stream(question, **GREEDY)]
    assert_pruned(llm, llm.client, document, "".join(chunks))
    assert len(chunks) > 5 and "".join(chunks) == answer


def test_langchain_completions(smollm2, document):
    pytest.importorskip("langchain_community.llms", reason=f"langchain-community {INSTALL}")
    before, after = programs("LangChain, completions", smollm2)
    assert type(run_program(before).client) is llama_cpp.Llama
    llm = run_program(after)
    prompt = f"{document.text}\n\n{document.question}\n{document.answer_prefix}"
    answer = llm.invoke(prompt, **GREEDY)
    chunks = list(llm.stream(prompt, **GREEDY))
    assert_pruned(llm, llm.client, document, answer, "".join(chunks))
    assert len(chunks) > 5 and "".join(chunks) == answer


def test_llama_index(smollm2, document):
    pytest.importorskip("llama_index.llms.llama_cpp", reason=f"llama-index-llms-llama-cpp {INSTALL}")
    from llama_index.core.llms import ChatMessage

    before, after = programs("llama-index", smollm2)
    assert type(run_program(before)._model) is llama_cpp.Llama
    llm = run_program(after)
    llm.generate_kwargs.update(GREEDY)
    prompt = f"{document.text}\n\n{document.question}\n{document.answer_prefix}"
    assert_pruned(llm, llm._model, document, llm.complete(prompt).text)
    assert_pruned(llm, llm._model, document, list(llm.stream_complete(prompt))[-1].text)
    messages = [ChatMessage(role="user", content=f"{document.text}\n\n{document.question}")]
    assert_pruned(llm, llm._model, document, str(llm.chat(messages).message.content))
    assert_pruned(llm, llm._model, document, str(list(llm.stream_chat(messages))[-1].message.content))
    assert (llm.metadata.context_window, llm.context_window) == (4096, 4096)
    assert llm._model.n_cells < 4096
