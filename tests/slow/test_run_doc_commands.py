"""Commands in the console blocks of README and docs, as they are written, on a small model: they end well."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from asl_gguf.cli import main
from asl_gguf.models import named
from doc_commands import blocks, parts
from tiny_llama import TEXT

NOT_RUN = {
    "asl-gguf serve": "runs until it is stopped: tests/slow/server",
    "asl-gguf models pull": "a download: tests/fast/models",
    "make ": "the whole of it is installed or tested", "pip ": "packages",
    ". .venv/bin/activate": "the shell's", "curl ": "a client: tests/slow/server/test_serve.py", "serve run ": "Ray's: tests/slow/server/test_ray.py",
    "build/py3-none-*/bin/ggml-rpc-server": "llama.cpp's: tests/slow/server/test_rpc.py", "python -m pytest": "tests",
}  # fmt: skip
"""how a command begins that is not run here -> why"""
SHORTER = {
    "calibrate": ["--tokens", "512", "--samples", "1", "--step", "3", "--auto-samples", "0", "--easy", "passkey", "--hard", "keyvalue"],
    "eval": ["--suite", "smoke", "--tasks", "passkey", "--samples", "1"],
    "run": ["-n", "4"], "chat": ["-n", "4"], "compare": ["-n", "4"], "inspect": ["-n", "4"],
}  # fmt: skip
"""what is put behind a command's own options, so that it takes seconds"""
LISTS = [(page, command) for page, text in blocks() if (command := parts(text))]
OURS = [(page, command) for page, command in LISTS if not any(" ".join(command[0]).startswith(one) for one in NOT_RUN)]


def test_every_reason_is_needed_and_nothing_falls_through():
    begins = [" ".join(command[0]) + " " for _, command in LISTS]
    assert not [one for one in NOT_RUN if not any(begin.startswith(one) for begin in begins)]
    assert all(words[0] == "asl-gguf" for _, command in OURS for words in command)
    assert len(OURS) >= 9


@pytest.mark.parametrize("page, command", OURS, ids=lambda one: one if isinstance(one, str) else " ".join(one[0][:2]))
def test_it_runs(page, command, tiny_model, tmp_path, monkeypatch, capsys):
    deep = tiny_model("llama", n_layer=12, n_head=2, n_head_kv=1, n_ff=64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "document.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who signed it?\n")))
    resolve = named.resolve
    # whatever model is named, or none
    for module in ("models.named", "drop_in.llama", "cli.doctor"):
        monkeypatch.setattr(f"asl_gguf.{module}.resolve", lambda _: resolve(deep), raising=False)
    for words in command:
        arguments = [str(tmp_path / "document.txt") if Path(one).is_absolute() else one for one in words[1:]]
        assert main([*arguments, *SHORTER.get(arguments[0], [])]) == 0, (
            f"{page}: {' '.join(words)}: {capsys.readouterr()}"
        )
    written = [one for words in command for one in words if one.endswith((".html", "results"))]
    assert all((tmp_path / one).exists() for one in written)
