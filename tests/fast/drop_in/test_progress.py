"""Progress: totals that know of layers with fewer tokens, and bars that show them."""

from __future__ import annotations

import io
import sys
import types

import pytest

from asl_gguf import OptionError
from asl_gguf.drop_in import progress
from asl_gguf.drop_in.progress import ProgressBar, TqdmBar, progress_of
from harness import prompt
from tiny_llama import N_LAYER, SETTLES, greedy

TOKENS = prompt(400)
N_KEPT = 40


@pytest.fixture
def calls(make):
    """`calls(policy, **options)`: what a prefill tells its progress callback, and the report."""

    def calls(policy, **options):
        told: list[tuple[int, int]] = []
        llm = make(asl_budget=0.1, asl_policy=policy, asl_progress=lambda *call: told.append(call), **options)
        greedy(llm, TOKENS, 1)
        return told, llm.last_prefill

    return calls


def test_the_total_knows_the_layer_that_selects(calls):
    """A policy that says its layer beforehand is right from the first call on."""
    told, report = calls("fastkv:tsp_layer=2")
    expected = 3 * len(TOKENS) + (N_LAYER - 3) * N_KEPT
    assert report.selection_layer == 2 and {total for _, total in told} == {expected}
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == expected


def test_a_later_layer_than_the_first_possible_one_raises_the_total(calls):
    told, report = calls(SETTLES)
    first = SETTLES.first_selection(N_LAYER)
    assert told[0][1] == (first + 1) * len(TOKENS) + (N_LAYER - 1 - first) * N_KEPT
    assert told[-1][0] == told[-1][1] == report.token_layers
    shares = [done / total for done, total in told]
    assert shares == sorted(shares) and all(done <= total for done, total in told)


@pytest.mark.parametrize("policy", ["snapkv", "none"])
def test_a_policy_that_drops_no_tokens(calls, policy):
    options = {"asl_decode_ctx": 1024} if policy == "none" else {}
    told, _ = calls(policy, **options)
    assert {total for _, total in told} == {N_LAYER * len(TOKENS)}


def test_two_passes_are_two_jobs(calls):
    told, report = calls("gemfilter")
    begins = next(i for i in range(1, len(told)) if told[i][0] < told[i - 1][0])
    assert told[begins - 1][0] == told[begins - 1][1] == (report.selection_layer + 1) * len(TOKENS)
    assert told[-1] == (N_KEPT * N_LAYER, N_KEPT * N_LAYER)


def test_a_prompt_that_reuses_its_start(make):
    told: list[tuple[int, int]] = []
    llm = make(
        asl_budget=0.1, asl_policy="fastkv:tsp_layer=2", asl_full_kv=True, asl_progress=lambda *call: told.append(call)
    )
    greedy(llm, TOKENS + prompt(50, seed=1), 1)
    told.clear()
    greedy(llm, TOKENS + prompt(50, seed=2), 1)
    report = llm.last_prefill
    assert report.reused_tokens >= len(TOKENS) and told[-1][0] == told[-1][1] == report.token_layers
    assert told[0][1] == report.token_layers


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(progress, "time", found := Clock())
    return found


def test_a_line_now_and_then_off_a_terminal(clock):
    bar = ProgressBar("prefill", stream := io.StringIO())
    for second in range(0, 100, 5):
        clock.now = second
        bar(second + 1, 101)
    bar.clear()
    assert stream.getvalue() == "prefill: 31%, 68 s left\nprefill: 60%, 39 s left\nprefill: 90%, 10 s left\n"


def test_a_second_job_has_a_pace_of_its_own(clock):
    """It begins with what it shares with the first one, which took no time."""
    bar = ProgressBar("prefill", stream := io.StringIO())
    for clock.now, done in ((0, 1), (20, 100), (40, 50), (75, 60)):
        bar(done, 100)
    clock.now = 110
    bar(50, 100)
    assert stream.getvalue() == "prefill: 50%\nprefill: 60%, 2 min left\nprefill: 50%\n"


def test_long_work_has_minutes_and_hours(clock):
    bar = ProgressBar("prefill", stream := io.StringIO())
    for clock.now, done in ((0, 0), (100, 1), (200, 40), (9900, 50)):
        bar(done, 100)
    assert stream.getvalue() == "prefill: 1%, 2.8 h left\nprefill: 40%, 5 min left\nprefill: 50%, 2.8 h left\n"


def test_short_work_leaves_nothing(clock):
    bar = ProgressBar("prefill", stream := io.StringIO())
    for clock.now in (0, 10, 29):
        bar(int(clock.now), 30)
    clock.now = 31
    bar(30, 30)
    assert stream.getvalue() == ""


def test_a_dumb_terminal_gets_lines(clock, monkeypatch):
    """It would show the letters that erase a line elsewhere."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    for term, is_drawn in (("dumb", False), ("xterm", True)):
        monkeypatch.setenv("TERM", term)
        bar = ProgressBar("prefill", stream)
        bar(1, 2)
        bar.clear()
        assert ("\x1b" in stream.getvalue()) == is_drawn


def test_a_bar_in_python(make, monkeypatch, capsys):
    """tqdm's where it is installed, else a plain one, which is silent off a terminal."""
    made = []

    class Bar:
        n, total, closed = 0, 0, False

        def __init__(self, total: int, **_: object) -> None:
            made.append(self)

        def update(self, n: int) -> None: ...

        refresh = lambda self: None  # noqa: E731

        def close(self) -> None:
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    llm = make(asl_budget=0.1, asl_policy="fastkv:tsp_layer=2", asl_progress=True)
    for _ in range(2):
        greedy(llm, prompt(300, seed=_), 1)
    assert len(made) == 2 and all(bar.closed and bar.n == bar.total > 0 for bar in made)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    llm.set_progress(True)
    greedy(llm, prompt(300, seed=3), 1)
    assert len(made) == 2 and capsys.readouterr().err == ""
    assert isinstance(progress_of(True), ProgressBar) and progress_of(None) is progress_of(False) is None
    assert progress_of(print) is print


def test_tqdm_itself():
    tqdm = pytest.importorskip("tqdm").tqdm
    stream = io.StringIO()
    bar = TqdmBar(lambda **options: tqdm(file=stream, mininterval=0, **options))
    for call in ((10, 100), (60, 80), (80, 80), (5, 10), (10, 10)):
        bar(*call)
    assert "prefill: 100%" in stream.getvalue() and stream.getvalue().count("prefill:   0%") == 2


def test_a_bar_survives_a_copy(make):
    import copy

    assert copy.copy(make(asl_budget=0.1, asl_progress=True))._asl.progress is True
    with pytest.raises(OptionError, match="asl_progress: expected a callable .*, True for a bar, or None, got 3"):
        make(asl_budget=0.1, asl_progress=3)
