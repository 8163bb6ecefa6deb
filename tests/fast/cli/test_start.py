"""Ctrl-C while the command starts: exit code 130 and one line, from the first import on that is its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import asl_gguf
from chats import environment

ROOT = Path(asl_gguf.__path__[0])
INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["asl-gguf", *{arguments!r}]
import asl_gguf.__main__ as entry
sys.exit(entry.main())
"""


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, with Ctrl-C as it begins to import this module."""
    code = INTERRUPTED.format(module=module, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal of this kind")
@pytest.mark.parametrize("module", ["asl_gguf.cli", "argparse", "numpy", "asl_gguf.cli.serve", "llama_cpp"])
def test_ctrl_c_within_an_import(module):
    ended = run(module, "doctor")
    assert (ended.returncode, ended.stderr) == (130, "asl-gguf: cancelled\n")


def test_without_it_nothing_changes():
    ended = run("no.such.module", "--version")
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, asl_gguf.__version__, "")
    ended = run("no.such.module", "no-such-command")
    assert ended.returncode == 2


def test_a_handler_of_others_stays():
    """Of a job in the background, which ignores Ctrl-C."""
    code = INTERRUPTED.replace("default_int_handler", "SIG_IGN").format(module="asl_gguf.cli", arguments=("--version",))
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, asl_gguf.__version__)


def test_the_entry_is_light():
    """What is imported before it handles Ctrl-C; and the script of the package is this entry."""
    code = "import sys; before = set(sys.modules); import asl_gguf.__main__; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment() | {"PYTHONPATH": str(ROOT.parent)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    heavy = {"typing", "re", "logging", "pathlib", "ctypes", "numpy", "argparse", "llama_cpp", "asl_gguf.cli"}
    assert "asl_gguf.__main__" in found.stdout.split() and not heavy & set(found.stdout.split())
    script = (
        (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
        if (ROOT.parent / "pyproject.toml").exists()
        else ""
    )
    assert not script or re.search(r'^asl-gguf = "asl_gguf\.__main__:main"$', script, re.MULTILINE)
