"""`asl_guard`: larger budgets until the kept rows hold enough attention."""

from __future__ import annotations

from typing import Any

import pytest

from asl_gguf import OptionError
from asl_gguf.policies import SnapKV
from harness import prompt
from tiny_llama import complete, greedy

N_TOKENS = 300
BUDGET = 40
POLICY = SnapKV(window=8)


@pytest.fixture
def held(make) -> dict[int, float]:
    """The mass that each budget holds."""
    masses = {}
    for budget in (BUDGET, 2 * BUDGET, 4 * BUDGET):
        llm = make(asl_budget=budget, asl_policy=POLICY)
        greedy(llm, prompt(N_TOKENS), 1)
        masses[budget] = llm.last_prefill.attention_mass
    return masses


def guarded(make: Any, guard: float, **options: Any) -> Any:
    llm = make(asl_budget=BUDGET, asl_policy=POLICY, asl_guard=guard, **options)
    greedy(llm, prompt(N_TOKENS), 1)
    return llm


def test_a_budget_that_holds_enough_is_left_alone(make, held):
    report = guarded(make, 0.9 * held[BUDGET]).last_prefill
    assert report.kept_tokens == BUDGET and report.guard_attempts == () and report.reason is None


def test_the_budget_doubles_until_it_holds_enough(make, held):
    guard = (held[2 * BUDGET] + held[4 * BUDGET]) / 2
    assert held[BUDGET] < held[2 * BUDGET] < guard < held[4 * BUDGET]
    llm = guarded(make, guard)
    report = llm.last_prefill
    assert [n_kept for n_kept, _ in report.guard_attempts] == [BUDGET, 2 * BUDGET]
    assert all(0 < mass < guard for _, mass in report.guard_attempts)
    assert report.kept_tokens == 4 * BUDGET and llm.last_prefill.attention_mass == pytest.approx(held[4 * BUDGET])
    assert report.reason.startswith("asl_guard: a smaller budget held 0.") and str(guard) in report.reason


def test_same_answer_as_the_larger_budget(make, held):
    guard = (held[BUDGET] + held[2 * BUDGET]) / 2
    answer = complete(make(asl_budget=BUDGET, asl_policy=POLICY, asl_guard=guard), prompt(N_TOKENS))
    expected = complete(make(asl_budget=2 * BUDGET, asl_policy=POLICY), prompt(N_TOKENS))
    assert answer["choices"] == expected["choices"]


def test_what_fits_is_kept_whole(make):
    """A guard that only the full cache satisfies gets it, where the cells have room."""
    report = guarded(make, 1.0, asl_decode_ctx=512).last_prefill
    assert report.kept_tokens == N_TOKENS and not report.pruned


def test_the_largest_budget_is_taken_if_nothing_holds_enough(make):
    """Here 256 cells: the largest budget is what they hold beside one token of the answer."""
    report = guarded(make, 1.0, asl_decode_ctx=256).last_prefill
    assert report.kept_tokens == 255 and report.pruned and len(report.guard_attempts) == 3


def test_no_budget_is_tried_above_four(make):
    """Whatever the cells would hold: after four budgets comes the full cache, or the answer from four."""
    report = guarded(make, 1.0, asl_room=24).last_prefill
    assert [n_kept for n_kept, _ in report.guard_attempts] == [BUDGET, 2 * BUDGET, 4 * BUDGET]
    assert report.kept_tokens == N_TOKENS
    llm = make(asl_budget=20, asl_policy=POLICY, asl_guard=1.0, asl_room=44, n_ctx=2048)
    greedy(llm, prompt(1100), 1)
    report = llm.last_prefill
    assert llm.n_cells < 1100 and [n_kept for n_kept, _ in report.guard_attempts] == [20, 40]
    assert report.kept_tokens == 80


@pytest.mark.parametrize("policy", ["streaming_llm", "gemfilter", "asl-two-pass"])
def test_policies_that_tell_nothing_are_refused(make, policy):
    with pytest.raises(
        OptionError, match=f"asl_guard: expected a policy that keeps rows by .*, got {policy}; pass asl"
    ):
        make(asl_budget=BUDGET, asl_policy=policy, asl_guard=0.5)
    assert make(asl_budget=BUDGET, asl_policy="none", asl_guard=0.5)


def test_cells_have_room_for_four_budgets(make):
    plain, with_guard = (make(asl_budget=BUDGET, asl_room=24, asl_guard=guard) for guard in (None, 0.5))
    assert with_guard.n_cells > plain.n_cells
    assert with_guard.n_cells <= 4 * plain.n_cells


@pytest.mark.parametrize("guard", [0, 1.5, -1, True, "0.5"])
def test_bad_guards_are_errors(make, guard):
    with pytest.raises(OptionError, match=r"asl_guard: expected a share of the attention in \(0, 1\]"):
        make(asl_budget=BUDGET, asl_guard=guard)
