"""Commands in README and docs are ones that there are: names, options and files. tests/slow/test_run_doc_commands.py runs them."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from asl_gguf.cli import make_parser
from asl_gguf.server import bindings
from asl_gguf.server.arguments import check, server_options
from asl_gguf.server.options import split
from doc_commands import ROOT, blocks, inline, parts

ELSEWHERE = {
    "pip": "packages", "curl": "a client of the endpoint's",  ".": "the shell's", "build/py3-none-*/bin/ggml-rpc-server": "llama.cpp's: tests/slow/server/test_rpc.py",
    "serve": "Ray's: tests/slow/server/test_ray.py", "pre-commit": "a package",
}  # fmt: skip
"""programs that are not checked here -> what they are"""
PLACES = {"FILE": "model.gguf", "MODEL": "model.gguf", "N": "512", "DIRECTORY": "folder"}
"""what a reader puts something else for"""
COMMANDS = sorted({(page, tuple(words)) for page, text in [*blocks(), *inline()] for words in parts(text)})
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_there_are_some():
    assert len(COMMANDS) > 50


def test_each_program_elsewhere_is_named():
    programs = {words[0] for _, words in COMMANDS}
    assert not set(ELSEWHERE) - programs


@pytest.mark.parametrize("page, command", COMMANDS, ids=lambda one: one if isinstance(one, str) else " ".join(one)[:60])
def test_it_is_one(page, command):
    program, *arguments = [PLACES.get(word.rstrip("."), word) for word in command if word != "..."]
    if program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= TARGETS, f"{page}: {targets - TARGETS}: no target of the Makefile"
    elif program.endswith("python"):
        check_script(page, arguments)
    elif program == "asl-gguf" and arguments[:1] == ["serve"]:
        _, rest = split(arguments[1:], {})
        if bindings.library_path().exists():
            check(rest, server_options())
    elif program == "asl-gguf":
        check_parsed(page, arguments)
    else:
        assert program in ELSEWHERE, f"{page}: {command}: neither checked, nor named in ELSEWHERE"


def check_parsed(page: str, arguments: list[str]) -> None:
    """One that says too little may be a name: `asl-gguf inspect`."""
    try:
        make_parser().parse_args(arguments)
    except SystemExit as err:
        named = make_parser()._subparsers._group_actions[0].choices
        is_name = len(arguments) == 1 and arguments[0] in named
        assert is_name or err.code == 0, f"{page}: asl-gguf {' '.join(arguments)}: refused"


def check_script(page: str, arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert find_spec(arguments[1].partition(".")[0]), f"{page}: no module {arguments[1]}"
        ours = ROOT / f"{arguments[1].replace('.', '/')}.py"
        assert ours.exists() or not arguments[1].startswith("asl_gguf"), f"{page}: no module {arguments[1]}"
        paths = [one for one in arguments[2:] if one.endswith(".py")]
        assert all((ROOT / path).exists() for path in paths), f"{page}: {paths}"
        return
    path = ROOT / arguments[0]
    assert path.exists(), f"{page}: no file {arguments[0]}"
    text = "".join(one.read_text(encoding="utf-8") for one in path.parent.glob("*.py"))
    unknown = [one for one in arguments[1:] if re.match("--[a-z]", one) and f'"{one}"' not in text]
    assert not unknown, f"{page}: {arguments[0]} has no {unknown}"
