"""`ttft:TIME`: what is predicted to end in time, on a machine whose speed the tests choose."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.budget.latency import LatencyRule
from asl_gguf.budget.rule import BudgetContext
from asl_gguf.budget.targets import make_budget
from asl_gguf.policies import REGISTRY, FastKV, GemFilter, PyramidInfer, SpanASL, make_policy
from asl_gguf.report import PrefillReport
from timed_machine import MEASURING, N_LAYER, SPEED, prefill_seconds
from tiny_llama import SETTLES

ROOM = 61
NO_SESSION: Any = lambda n_tokens: None  # noqa: E731  (the machine needs none)


@pytest.fixture
def choose(machine):
    """`choose(text, policy, measured=2000, **context)`: a rule that has met one long prompt."""

    def choose(text: str, policy: Any = SETTLES, measured: int = 2000, **context: Any) -> LatencyRule:
        target = make_budget(text, context.pop("min_prompt", 256))
        given = {"n_ctx": 8192, "policy": policy, "room": ROOM} | context
        rule = LatencyRule.make(target, BudgetContext("", **given))
        rule.bind(SimpleNamespace(n_layer=N_LAYER))
        if measured:
            rule.measure(NO_SESSION, [0] * measured, lambda: None)
            rule.annotate(report_of(measured, measured))
        return rule

    return choose


def report_of(n_tokens: int, n_kept: int, layer: int | None = None, seconds: float | None = None) -> PrefillReport:
    """Of a prefill that took what the machine says, unless seconds are given."""
    whole = N_LAYER if layer is None else layer + 1
    return PrefillReport(
        prompt_tokens=n_tokens,
        kept_tokens=n_kept,
        policy="x",
        budget_tokens=n_kept,
        selection_layer=layer,
        rows_by_layer=(n_kept,) * N_LAYER,
        token_layers=n_tokens * whole + n_kept * (N_LAYER - whole),
        n_layer=N_LAYER,
        prefill_seconds=prefill_seconds(n_tokens, n_kept, layer) if seconds is None else seconds,
    )


@pytest.mark.parametrize(
    "policy", [SETTLES, FastKV(), GemFilter(), PyramidInfer(), make_policy("asl-two-pass")], ids=str
)
def test_more_tokens_take_longer(choose, policy):
    rule = choose("ttft:5s", policy)
    for n_tokens in (300, 1500):
        times = [rule._predict(n_tokens, n_kept) for n_kept in range(policy.min_kept, n_tokens, 7)]
        assert all(np.diff(times) > 0)


def test_the_most_tokens_in_time(choose):
    """One token more would be too late; the whole prompt where there is time for it; a floor where there is none."""
    n_tokens, layer = 1600, 3
    least, most = math.ceil(0.05 * n_tokens), prefill_seconds(n_tokens, n_tokens)
    shortest = prefill_seconds(n_tokens, least, layer)
    previous = least
    for goal in np.linspace(shortest, most, 12)[1:-1]:
        n_kept = choose(f"ttft:{1000 * goal:.6f}ms").kept(n_tokens)
        assert prefill_seconds(n_tokens, n_kept, layer) <= goal * (1 + 1e-6)
        assert prefill_seconds(n_tokens, n_kept + 1, layer) > goal * (1 - 1e-6)
        assert least <= previous <= n_kept < n_tokens
        previous = n_kept
    assert choose(f"ttft:{most + 0.001:.6f}s").kept(n_tokens) == n_tokens
    assert choose(f"ttft:{most - 0.001:.6f}s").kept(n_tokens) < n_tokens
    for goal in (shortest - 0.1, 0.001):
        assert choose(f"ttft:{goal:.6f}s").kept(n_tokens) == least


def test_the_floor_is_what_the_policy_needs(choose):
    assert choose("ttft:1ms").kept(300) == SETTLES.min_kept > 15
    assert choose("ttft:1ms").kept(SETTLES.min_kept) == SETTLES.min_kept
    assert choose("ttft:1ms").kept(256) == 256 and choose("ttft:1ms", min_prompt=200).kept(256) < 256
    assert choose("ttft:1ms").kept(0) == 0


def test_cells_limit_what_time_allows(choose):
    rule = choose("ttft:1000s", decode_ctx=512)
    assert rule.n_cells == 512 and choose("ttft:1000s").n_cells == 8192
    assert rule.kept(448) == 448 and rule.kept(449) == 448 and rule.kept(8190) == 510
    assert choose("ttft:1ms", decode_ctx=256).kept(7000) == 192  # less than the floor


def test_a_slow_prefill_lowers_what_is_kept(choose):
    rule = choose("ttft:8s")
    before = rule.kept(1600)
    exact = report_of(1600, before, 3)
    rule.annotate(exact)
    assert rule.kept(1600) == before  # it took what was predicted
    rule.annotate(dataclasses.replace(exact, prefill_seconds=1.1 * exact.prefill_seconds))
    slower = rule.kept(1600)
    assert slower < before
    for _ in range(30):  # of a machine that stays slower
        rule.annotate(report_of(1600, slower, 3, 1.1 * prefill_seconds(1600, slower, 3)))
    ratio = rule._predict(1600, 400) / choose("ttft:9s")._predict(1600, 400)
    assert ratio == pytest.approx(1.1, rel=1e-3)
    rule.annotate(report_of(1600, 400, 3, 1e9))  # an outlier counts as 8 times slower
    assert rule._predict(1600, 400) / choose("ttft:9s")._predict(1600, 400) <= 1.1 * 8**0.5 * 1.001


def test_the_layer_that_is_expected(choose):
    """The policy's first one; then what prompts have met, the newest half of it."""
    rule = choose("ttft:9s", SpanASL(min_layer=1, obs_layers=2))
    assert "selection layer 2, the policy's first;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    assert "selection layer 3, of earlier prompts;" in rule.annotate(report_of(1600, 400, None)).budget_choice
    assert "selection layer 4, of earlier prompts;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    assert "for all 1,600 tokens" in rule.annotate(report_of(1600, 1600)).budget_choice
    assert "selection layer 4, of earlier prompts;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    firsts = {name: make_policy(name).first_selection(30) for name in REGISTRY if make_policy(name).first_selection(30)}
    assert firsts == {
        "asl-span": 18,
        "asl": 10,
        "asl-two-pass": 10,
        "fastkv": 14,
        "gemfilter": 12,
        "indexer": 14,
        "specprefill": 18,
    }
    assert PyramidInfer().first_selection(30) == 0 and SpanASL(min_layer=9, tau=2).first_selection(30) == 9
    none = {name for name in REGISTRY if make_policy(name).first_selection(30) is None}
    assert none == {"snapkv", "streaming_llm", "none"}


def test_reports(choose):
    def choice(text: str, n_tokens: int, n_kept: int | None = None) -> str | None:
        rule = choose(text)
        kept = rule.kept(n_tokens) if n_kept is None else n_kept
        return rule.annotate(report_of(n_tokens, kept, 3 if kept < n_tokens else None)).budget_choice

    speed = "1,000.0 us per token and layer"
    n_kept = choose("ttft:8s").kept(1600)
    details = f"selection layer 3, the policy's first; {speed}"
    assert choice("ttft:8s", 1600) == f"ttft:8s: 8.0 s predicted for {n_kept} of 1,600 tokens ({details})"
    assert choice("ttft:8s", 700) == f"ttft:8s: 4.2 s predicted for all 700 tokens ({speed})"
    assert choice("ttft:8s", 200) == "ttft:8s: all 200 tokens, the prompt is short"
    late = f"ttft:900ms: out of reach, 6.6 s predicted for 80 of 1,600 tokens ({details})"
    assert choice("ttft:900ms", 1600) == late


def test_measuring_counts(choose, machine):
    """A prompt more than twice as long as any before it is measured, and its time shortens the prefill."""
    rule, begun = choose("ttft:11s", measured=0), []
    rule.measure(NO_SESSION, [0] * 200, lambda: begun.append(1))
    assert machine == [] and rule.kept(200) == 200
    assert rule.kept(1600) == 80  # nothing is known yet
    assert rule.measure(NO_SESSION, [0] * 1600, lambda: begun.append(1)) == pytest.approx(1600 * MEASURING)
    assert machine == [1600] and begun == [1]
    first = rule.kept(1600)
    report = rule.annotate(report_of(1600, first, 3))
    assert report.seconds["measuring"] == pytest.approx(1600 * MEASURING) and "11.0 s predicted" in report.budget_choice
    assert report.prefill_seconds == pytest.approx(11.0, abs=2 * SPEED)
    assert rule.measure(NO_SESSION, [0] * 3200, lambda: begun.append(1)) == 0
    assert rule.kept(1600) > first and begun == [1]
    assert rule.measure(NO_SESSION, [0] * 3201, lambda: begun.append(1)) > 0


def test_turns(choose):
    """A turn is evaluated as it is if that is in time, or sooner than pruning everything."""
    rule = choose("ttft:2s")
    assert rule.extends(200, 500) and rule.extends(0, 500)
    assert not rule.extends(1900, 10)  # 2 seconds are too few for it; pruned, it takes less
    assert rule.extends(500, 3000)  # 3 seconds, but all of it anew takes longer
    unmeasured = choose("ttft:2s", measured=0)
    assert unmeasured.extends(300, 3000) and not unmeasured.extends(3000, 1)


@pytest.mark.parametrize("policy", ["snapkv", "streaming_llm"])
def test_policies_that_no_choice_makes_faster(tiny_model, policy):
    with pytest.raises(OptionError, match=f"expected a policy whose deeper layers see fewer .* got {policy}, "):
        Llama(str(tiny_model("llama")), asl_budget="ttft:5s", asl_policy=policy)
