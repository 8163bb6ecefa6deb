"""Fixtures of the tests of the command."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import gguf
import pytest

from asl_gguf.cli import main
from chats import N_TOKENS, SELECTS, command, environment
from tiny_gguf import FIRST_BYTE
from tiny_llama import TEXT


@pytest.fixture(name="model", scope="module")
def readable_model(tiny_model, tmp_path_factory) -> str:
    """A tiny model that writes printable ASCII alone: its answers stream, and end no lines."""
    path = tmp_path_factory.mktemp("chat") / "readable.gguf"
    shutil.copy(tiny_model("llama"), path)
    output = next(tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == "output.weight")
    for begin, end in ((0, 32), (127, 256)):
        output.data[FIRST_BYTE + begin : FIRST_BYTE + end] = 0  # a logit of 0 never wins
    output.data.base.flush()
    return str(path)


@pytest.fixture(name="document")
def write_document(tmp_path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(name="chat")
def run_chat(model, monkeypatch, capsys, tmp_path):
    """`chat(lines, *arguments)`: exit code, stdout and stderr of a chat in tmp_path that reads these lines."""
    monkeypatch.chdir(tmp_path)

    def chat(lines: list[str] | bytes, *arguments: object) -> tuple[int, str, str]:
        script = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(script)))
        code = main(["chat", "-m", model, "-n", str(N_TOKENS), "-t", "1", "--policy", SELECTS, *map(str, arguments)])
        return code, *capsys.readouterr()

    return chat


@pytest.fixture(name="open_terminal")
def terminals(model, tmp_path):
    from terminal import Terminal

    opened: list[Terminal] = []

    def open_terminal(*arguments: object) -> Terminal:
        (tmp_path / "inputrc").write_text("set enable-bracketed-paste off\n")  # its marks would follow each prompt
        variables = environment() | {"TERM": "vt100", "INPUTRC": str(tmp_path / "inputrc")}
        variables["ASL_GGUF_CONFIG_DIR"] = str(tmp_path / "config")
        opened.append(Terminal(command("chat", "-m", model, "-t", "1", *arguments), variables))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.close()
