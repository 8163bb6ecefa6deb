"""docs/INTEGRATIONS.md as it is written, with the real packages and the default model."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.eval.demo_text import DemoDocument, make_document
from asl_gguf.native.vocabulary import tokenize, vocabulary
from harness import llama_cpp
from patience import PATIENCE

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


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of the page's server, on a free port, and its log."""
    for module in ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(module, reason=f"the server's {module} {INSTALL}")
    folder = tmp_path_factory.mktemp("server")
    program = "import logging\nlogging.basicConfig(level=logging.INFO)\n"
    (folder / "serve.py").write_text(program + block("llama-cpp-python's OpenAI-style server", "python"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", smollm2, "--n_ctx", 2048, "--logits_all", "false", "--verbose", "false", "--port", port]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PAGE.parents[1]), *sys.path]))}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, folder / "serve.py", *map(str, arguments)], env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/v1/models", timeout=PATIENCE).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, folder / "log"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def post(address: str, **body: Any) -> str:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read().decode()


def test_the_server(server, document):
    server, log = server
    question = f"{document.text}\n\n{document.question}"
    chat = {"messages": [{"role": "user", "content": question}], **GREEDY}
    found = json.loads(post(f"{server}/v1/chat/completions", **chat))
    answer = found["choices"][0]["message"]["content"]
    assert document.answer in answer and found["usage"]["prompt_tokens"] > N_TOKENS
    events = re.findall(r"^data: (\{.*\})", post(f"{server}/v1/chat/completions", stream=True, **chat), re.MULTILINE)
    parts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert len(parts) > 5 and "".join(parts) == answer
    found = json.loads(post(f"{server}/v1/completions", prompt=f"{question}\n{document.answer_prefix}", **GREEDY))
    assert document.answer in found["choices"][0]["text"]
    prefills = re.findall(r"prefill: kept (\d+) of (\d+) tokens", log.read_text())
    assert len(prefills) == 3 and all(int(kept) == int(n_tokens) // 5 for kept, n_tokens in prefills)


def test_a_prompt_that_the_server_has_no_room_for(server, document):
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(f"{server[0]}/v1/completions", prompt=document.text * 2, **GREEDY)
    error = json.loads(raised.value.read())["error"]
    assert (raised.value.code, error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 2048 tokens" in error["message"]
