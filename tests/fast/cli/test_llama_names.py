"""Every option of llama.cpp's programs is known to `run` and `chat`, or is refused by name with what there is in its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asl_gguf.cli import make_parser
from asl_gguf.cli.llama_names import INSTEAD, instead

ROOT = Path(__file__).parents[3]
PROGRAMS = {"COMMON", "COMPLETION", "CLI"}
"""LLAMA_EXAMPLE_... of llama-cli, which is two programs in llama.cpp: one that talks, and one that completes"""


def llama_options() -> list[tuple[list[str], set[str]]]:
    """Names of each option, and the programs that have it, from llama.cpp's own source."""
    sources = sorted(ROOT.glob("build/*/source/*/vendor/llama.cpp/common/arg.cpp"))
    if not sources:
        pytest.skip("expected llama.cpp's source below build/, found none: make build")
    found = []
    for text in re.split(r"\n    add_opt\(", sources[-1].read_text(encoding="utf-8"))[1:]:
        lists = re.match(r"common_arg\((?:\s*//[^\n]*)*\s*\{(.*?)\}\s*,(?:\s*\{(.*?)\}\s*,)?", text, re.DOTALL)
        assert lists is not None, f"an option in a form that this test does not read: {text[:200]}"
        examples = re.search(r"\.set_examples\(\{(.*?)\}\)", text, re.DOTALL)
        programs = set(re.findall(r"LLAMA_EXAMPLE_(\w+)", examples[1])) if examples else {"COMMON"}
        found.append((re.findall(r'"(-[^"]*)"', f"{lists[1]}{lists[2] or ''}"), programs))
    assert len(found) > 300
    return found


@pytest.mark.parametrize("command", ["run", "chat"])
def test_each_is_known_or_has_something_in_its_place(command):
    parser = make_parser()._subparsers._group_actions[0].choices[command]
    known = set(parser._option_string_actions)
    names = {name for names, programs in llama_options() if programs & PROGRAMS for name in names}
    missing = sorted(name for name in names - known if instead(name) is None)
    assert not [name for name in names - known if parser._knows(name)], "taken for the beginning of another option"
    assert not missing, f"asl-gguf {command} neither has these, nor says in cli/llama_names.py what to do: {missing}"


def test_nothing_is_said_about_what_there_is():
    """An option in llama_names.py that `run` and `chat` have would be a hint that nobody sees; and names are llama.cpp's."""
    parsers = make_parser()._subparsers._group_actions[0].choices
    known = set(parsers["run"]._option_string_actions) & set(parsers["chat"]._option_string_actions)
    assert not known & set(INSTEAD)
    theirs = {name for names, _ in llama_options() for name in names}
    assert not set(INSTEAD) - theirs


@pytest.mark.parametrize(
    "name, hint",
    [
        ("--spec-draft-n-max", "drafted answers"), ("--threads-draft", "drafted answers"), ("--mmproj-url", "prompts are text"),
        ("--reasoning-budget", "enable_thinking"), ("--fit-target", "fit:2GiB"), ("--samplers", "--top-k"),
        ("-cmoe", "-ngl N"), ("--gpt-oss-20b-default", "-hf USER/REPO"),
    ],
)  # fmt: skip
def test_hints(name, hint, capsys):
    from asl_gguf.cli import main

    with pytest.raises(SystemExit) as err:
        main(["run", "-p", "hi", name, "1"])
    said = capsys.readouterr().err
    assert err.value.code == 2 and f"got the unknown {name}; " in said and hint in said and said.count("\n") == 1
