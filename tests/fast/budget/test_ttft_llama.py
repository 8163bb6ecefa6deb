"""`ttft:TIME` of a Llama, on a tiny model: the clock is a machine of the tests' choice, or the real one."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.errors import PrefillCancelled
from harness import prompt
from timed_machine import MEASURING, N_CTX, prefill_seconds
from tiny_llama import SETTLES, greedy, logits

pytestmark = pytest.mark.long


def test_the_choice_on_a_model(make, machine):
    """The first prompt of a Llama, on a machine that takes seconds for what the tiny model does in milliseconds."""
    goal = MEASURING * 1600 + prefill_seconds(1600, 500, 3)
    llm = make(n_ctx=N_CTX, asl_budget=f"ttft:{1000 * goal + 0.01:.3f}ms", asl_policy=SETTLES)
    assert llm.n_cells == N_CTX
    report = llm.prefill(prompt(1600))
    assert report.pruned and report.kept_tokens == report.budget_tokens == 500 and report.selection_layer == 3
    assert "predicted for 500 of 1,600 tokens" in report.budget_choice
    fixed = make(n_ctx=N_CTX, asl_budget=500, asl_policy=SETTLES)
    fixed.prefill(prompt(1600))
    assert np.array_equal(logits(llm), logits(fixed))
    assert (
        llm.last_prefill.to_dict()["budget_choice"] == report.budget_choice and fixed.last_prefill.budget_choice is None
    )


def test_measuring_leaves_nothing_behind(make, stock):
    """With the real clock: whatever was measured, a prompt in time is stock's."""
    llm = make(n_ctx=N_CTX, asl_budget="ttft:60min", asl_dequant=False)
    theirs = stock(n_ctx=N_CTX)
    for n_tokens in (300, 700, 299, 1500):
        for target in (llm, theirs):
            target.reset()
        assert greedy(llm, prompt(n_tokens)) == greedy(theirs, prompt(n_tokens))
        assert np.array_equal(logits(llm), logits(theirs))
        assert (
            not llm.last_prefill.pruned and f"predicted for all {n_tokens:,} tokens" in llm.last_prefill.budget_choice
        )
    assert greedy(llm, prompt(20)) == greedy(stock(n_ctx=N_CTX), prompt(20))


def test_a_time_out_of_reach(make):
    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES)
    report = llm.prefill(prompt(1600))
    assert report.kept_tokens == 80 and "out of reach" in report.budget_choice and report.seconds["measuring"] > 0
    fixed = make(n_ctx=N_CTX, asl_budget=80, asl_policy=SETTLES)
    answer = greedy(llm, prompt(1600))
    assert answer == greedy(fixed, prompt(1600))
    greedy(llm, [*prompt(1600), *answer, *prompt(20, seed=1)], 1)
    assert llm.last_prefill.reused_tokens == 1607


def test_a_long_prompt_after_a_short_one_is_pruned(make):
    """They share their first token, and the short one's K/V are whole."""
    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES)
    short = prompt(50)
    greedy(llm, short, 1)
    greedy(llm, short[:1] + prompt(1599, seed=3), 1)
    assert llm.last_prefill.kept_tokens == 80 and llm.last_prefill.reused_tokens == 0


WHOLE_WINDOW = SETTLES.window + SETTLES.n_sink + 1


def test_protected_tokens_take_their_time(make):
    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES, asl_protect=(100, 400))
    report = llm.prefill(prompt(1600))
    assert report.protected_tokens == 300 and report.kept_tokens == 300 + WHOLE_WINDOW
    report = llm.prefill(prompt(330, seed=1))
    assert report.protected_tokens == 230 and report.kept_tokens == 230 + WHOLE_WINDOW
    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES, asl_protect=(0, 400))
    assert not llm.prefill(prompt(330, seed=1)).pruned


def test_the_guard_may_exceed_the_time(make):
    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES, asl_guard=1.0)
    report = llm.prefill(prompt(1600))
    assert report.guard_attempts[0][0] == 80 and not report.pruned and "80 of 1,600 tokens" in report.budget_choice


def test_a_policy_that_prunes_nothing(make, machine):
    llm = make(n_ctx=N_CTX, asl_budget="ttft:1ms", asl_policy="none")
    report = llm.prefill(prompt(900))
    assert report.budget_choice == "ttft:1ms: all 900 tokens, the policy drops nothing" and not machine


@pytest.mark.parametrize("cancelled_at", [1, 5])
def test_cancelled_while_measuring(make, cancelled_at):
    calls = []

    def stop(done: int, total: int) -> bool:
        calls.append(done)
        return len(calls) < cancelled_at

    llm = make(n_ctx=N_CTX, asl_budget="ttft:0.0001ms", asl_policy=SETTLES, n_ubatch=64, asl_progress=stop)
    greedy(llm, prompt(50))  # runs as stock does; its K/V are gone once the next prompt is measured
    assert llm.n_tokens and not calls
    with pytest.raises(PrefillCancelled):
        llm.prefill(prompt(1600))
    assert llm.n_tokens == 0 and len(calls) == cancelled_at
    llm.set_progress(None)
    assert llm.prefill(prompt(1600)).kept_tokens == 80
