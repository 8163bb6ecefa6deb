"""Budgets written as goals: how they are written, in states and copies, and on the command line."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import sys

import pytest

from asl_gguf import Llama, OptionError, StateError
from asl_gguf.budget.targets import Target, make_budget
from asl_gguf.cli import main
from asl_gguf.cli.budgets import parse_budget
from harness import prompt
from tiny_llama import SETTLES, TEXT, greedy

N_CTX = 2048
ROOM = 61

# how goals are written


@pytest.mark.parametrize(
    "text, kind, amount",
    [
        ("fit:2GiB", "fit", 2**31),
        ("fit:2gb", "fit", 2 * 10**9),
        ("FIT:1.5MiB", "fit", 3 * 2**19),
        ("fit:.5KiB", "fit", 512),
        ("fit:2.KB", "fit", 2000),
        ("fit:70000b", "fit", 70000),
        ("fit:0.3MB", "fit", 300000),
        ("ttft:5s", "ttft", 5),
        ("TTFT:800MS", "ttft", 0.8),
        ("ttft:2min", "ttft", 120),
        ("ttft:0.5s", "ttft", 0.5),
    ],
)
def test_goals(text, kind, amount):
    target = make_budget(text, 100)
    assert target == Target(text, kind, amount, 100) and parse_budget(text) == text


BAD = [
    "fit:",
    "fit:2",
    "fit:GiB",
    "fit:2G",
    "fit:2TiB",
    "fit:-2GiB",
    "fit:+2GiB",
    "fit:0GiB",
    "fit:1e3MiB",
    "fit: 2GiB",
    "fit:2 GiB",
    "fit:2GiB ",
    "fit:٢GiB",
    "fit:2s",
    "fit:nanGiB",
    "fit:1,5GiB",
    "ttft:",
    "ttft:5",
    "ttft:0s",
    "ttft:-1s",
    "ttft:5h",
    "ttft:infs",
    "ttft:2GiB",
]


@pytest.mark.parametrize("text", [*BAD, "fits:2GiB", "2GiB", "5s", ""])
def test_what_is_none(text, tiny_model):
    with pytest.raises(OptionError, match=rf"^asl_budget: expected .*fit:2GiB.*ttft:5s.*got {re.escape(repr(text))}$"):
        Llama(str(tiny_model("llama")), asl_budget=text)


@pytest.mark.parametrize("option", ["--budget", "/budget"])
@pytest.mark.parametrize("text", BAD)
def test_what_is_none_on_the_command_line(text, option):
    with pytest.raises(OptionError, match=rf"^{option}: expected .*fit:SIZE.*, got {re.escape(repr(text))}$"):
        parse_budget(text, option)


def test_a_wrong_min_prompt(tiny_model):
    with pytest.raises(OptionError, match="asl_min_prompt: expected"):
        Llama(str(tiny_model("llama")), asl_budget="fit:2GiB", asl_min_prompt=-1)


# states and copies


@pytest.mark.parametrize("way", ["file", "state"])
@pytest.mark.parametrize("budget", ["fit:1.5MiB", "ttft:0.0001ms"])
def test_states_of_one_goal_are_exchanged(make, tmp_path, budget, way):
    options = {"n_ctx": N_CTX, "asl_room": ROOM, "asl_policy": SETTLES}
    llm, other = make(asl_budget=budget, **options), make(asl_budget=budget, **options)
    document = prompt(1200)
    llm.prefill(document)
    llm.save_prompt(tmp_path / "saved")
    if way == "file":
        other.load_prompt(tmp_path / "saved")
    else:
        other.load_state(pickle.loads(pickle.dumps(llm.save_state())))
    turn = [*document, *prompt(20, seed=2)]
    assert greedy(other, turn) == greedy(llm, turn)
    assert other.last_prefill.reused_tokens == 1200 and other.last_prefill.budget_choice is None
    with pytest.raises(StateError, match=f"asl_budget 'fit:2MiB', got '{budget}'"):
        make(asl_budget="fit:2MiB", **options).load_prompt(tmp_path / "saved")


@pytest.mark.parametrize("budget", ["fit:1.5MiB", "TTFT:0.0001ms"])
def test_a_pickled_copy(make, budget):
    llm = make(n_ctx=N_CTX, asl_budget=budget, asl_room=ROOM, asl_policy=SETTLES)
    with contextlib.closing(pickle.loads(pickle.dumps(llm))) as copy:
        assert copy.n_cells == llm.n_cells and copy._asl.to_kwargs()["asl_budget"] == budget
        assert greedy(copy, prompt(900)) == greedy(llm, prompt(900))


# the command line


@pytest.fixture
def run(tiny_model, capsys, tmp_path):
    document = tmp_path / "document.txt"
    document.write_text(TEXT, encoding="utf-8")

    def run(command: str, *arguments: str, file: bool = True) -> tuple[int, str, str]:
        source = ["-f", str(document)] if file else []
        code = main([*command.split(), "-m", str(tiny_model("llama")), "-t", "1", *source, *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("budget", ["fit:0.6MiB", "ttft:0.0001ms"])
def test_run_and_inspect(run, tmp_path, budget):
    code, out, _ = run("run", "-n", "4", "--json", "-b", budget)
    report = json.loads(out)["report"]
    assert code == 0 and report["pruned"] and report["budget_choice"].startswith(f"{budget}: ")
    page = tmp_path / "page.html"
    code, _, err = run("inspect", "-q", "Who?", "-n", "4", "-b", budget, "-o", str(page))
    assert code == 0, err
    assert f"<dd>{budget}: " in page.read_text()


def test_compare_needs_prefills_of_its_own(run):
    options = ("-q", "Who?", "-n", "4", "--policies", "asl,fastkv", "-b", "fit:0.6MiB")
    code, out, err = run("compare", *options)
    assert (code, out) == (2, "") and "got fit:0.6MiB (a goal needs --measure" in err
    code, out, _ = run("compare", *options, "--measure", "--json")
    assert code == 0 and json.loads(out)["budget"] == "fit:0.6MiB"
    code, out, err = run("compare", "-q", "Who?", "--measure", "-b", "ttft:5s", "--policies", "asl,snapkv")
    assert (code, out) == (2, "") and "got snapkv" in err


@pytest.mark.parametrize(
    "command", ["bench prefill", "bench decode", "bench memory", "bench saved", "calibrate", "eval --out x"]
)
@pytest.mark.parametrize("budget", ["fit:2GiB", "ttft:5s"])
def test_commands_with_known_budgets(run, command, budget, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = "--budgets" if command.startswith("eval") else "--budget"
    code, out, err = run(command, option, budget, file=False)
    assert (code, out) == (2, "") and re.match(f"asl-gguf: {option}: expected .*, got '?{budget}", err)


def test_the_chat(run, monkeypatch):
    lines = ["Who?", "/report", "/budget ttft:0.0001ms", "Who?", "/report", "/budget fit:1KiB", "/budget fit:x", "Why?"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    code, out, err = run("chat", "-c", "1200", "-n", "4", "-b", "fit:0.7MiB")
    assert code == 1 and re.findall("^budget +([^ ]+): ", out, re.MULTILINE) == ["fit:0.7MiB", "ttft:0.0001ms"]
    too_small, wrong = err.splitlines()
    assert "expected at least fit:" in too_small and wrong.startswith("asl-gguf: /budget: expected 'auto'")
