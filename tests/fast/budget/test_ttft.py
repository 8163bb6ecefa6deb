"""`ttft:TIME`: what is predicted to end in time, on a machine whose speed the tests choose."""

from __future__ import annotations

import dataclasses
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.budget.latency import LatencyRule, Measured, Speed
from asl_gguf.budget.rule import BudgetContext
from asl_gguf.budget.targets import make_budget
from asl_gguf.policies import REGISTRY, FastKV, GemFilter, PyramidInfer, SpanASL, make_policy
from asl_gguf.report import PrefillReport
from timed_machine import N_LAYER, PER_PAIR, PER_TOKEN, layer_seconds, measured, overhead, spent
from tiny_llama import SETTLES

ROOM = 61
ONE_CHUNK = {"n_batch": 10**6, "n_ubatch": 10**6}


def full_seconds(n_tokens: int, n_layer: int = N_LAYER) -> float:
    return overhead(n_tokens) + n_layer * layer_seconds(n_tokens)


SESSION: Any = SimpleNamespace(chunks=ONE_CHUNK)


@pytest.fixture
def choose(machine):
    """`choose(text, policy, n_layer=6, measured=2000, **use)`: a rule that has met one long prompt."""

    def choose(text: str, policy: Any = SETTLES, n_layer: int = N_LAYER, measured: int = 2000, **use: Any) -> Any:
        target = make_budget(text, use.pop("min_prompt", 256))
        rule = LatencyRule.make(target, BudgetContext("", **({"n_ctx": 8192, "policy": policy, "room": ROOM} | use)))
        rule.bind(SimpleNamespace(n_layer=n_layer))
        if measured:
            rule.measure(SESSION, [0] * measured, lambda: None)
            rule.annotate(report_of(measured, measured))
        return rule

    return choose


def report_of(n_tokens: int, n_kept: int, layer: int | None = None, seconds: float | None = None) -> PrefillReport:
    """Of a prefill that took what the machine says, unless seconds are given."""
    deeper = 0 if layer is None else N_LAYER - 1 - layer
    exact = overhead(n_tokens) + (N_LAYER - deeper) * layer_seconds(n_tokens) + deeper * layer_seconds(n_kept)
    return PrefillReport(
        prompt_tokens=n_tokens,
        kept_tokens=n_kept,
        policy="x",
        budget_tokens=n_kept,
        selection_layer=layer,
        rows_by_layer=(n_kept,) * N_LAYER,
        token_layers=n_tokens * (N_LAYER - deeper) + n_kept * deeper,
        n_layer=N_LAYER,
        prefill_seconds=exact if seconds is None else seconds,
    )


@pytest.mark.parametrize("n_tokens", [1, 2, 7, 64, 500, 4096])
def test_speed_from_two_measurements(n_tokens):
    speed = Speed()
    assert speed.measure(n_tokens, measured, ONE_CHUNK) > 0
    assert speed.seconds([(n_tokens, N_LAYER)]) == pytest.approx(full_seconds(n_tokens))
    if n_tokens > 8:
        assert speed.seconds([(n_tokens * 3, 2), (5, 4)]) == pytest.approx(
            overhead(n_tokens * 3) + 2 * layer_seconds(n_tokens * 3) + 4 * layer_seconds(5)
        )
        assert speed.appended(10, 100, 3) == pytest.approx(full_seconds(10, 3) + 3 * PER_PAIR * 1000)


def test_what_the_first_layer_takes_more_is_counted_once():
    """Buffers that are touched first are no layer's own: thirty layers do not take thirty times that."""
    speed = Speed()
    speed.measure(2000, measured, ONE_CHUNK)
    assert speed.seconds([(2000, 30)]) - speed.seconds([(2000, 29)]) == pytest.approx(layer_seconds(2000))
    assert speed.seconds([(2000, 30)]) == pytest.approx(full_seconds(2000, 30))
    assert speed.seconds([(500, 30)]) == pytest.approx(full_seconds(500, 30))  # less to touch, too


@pytest.mark.parametrize(
    "n_batch, n_ubatch, n_tokens, n_last",
    [
        (512, 512, 2000, 464),
        (512, 512, 2048, 512),
        (512, 512, 512, 512),
        (512, 512, 513, 1),
        (512, 512, 100, 100),
        (768, 512, 2000, 464),
        (768, 512, 2240, 192),
        (100, 64, 230, 30),
        (100, 64, 200, 36),
        (1000, 64, 1000, 40),
    ],
)
def test_of_the_last_layer_the_last_chunk_counts(n_batch, n_ubatch, n_tokens, n_last):
    """It computes K/V alone for the others."""
    speed = Speed()
    speed.measure(n_tokens, measured, {"n_batch": n_batch, "n_ubatch": n_ubatch})
    before = n_tokens - n_last
    last = PER_TOKEN * n_last + PER_PAIR * (n_last * before + n_last * (n_last + 1) / 2)
    assert speed.seconds([(n_tokens, 8)]) == pytest.approx(full_seconds(n_tokens, 7) + last)
    ends = [
        end
        for start in range(0, n_tokens, n_batch)
        for end in (*range(start + n_ubatch, min(start + n_batch, n_tokens), n_ubatch), min(start + n_batch, n_tokens))
    ]
    assert (ends[-1] - (ends[-2] if len(ends) > 1 else 0)) == n_last  # what the engine's chunks are
    assert speed.seconds([(n_tokens, 8), (3, 5)]) == pytest.approx(full_seconds(n_tokens, 8) + 5 * layer_seconds(3))


def test_a_model_of_one_layer():
    speed = Speed()
    speed.measure(800, lambda n: measured(n, 1), ONE_CHUNK)
    assert speed.seconds([(800, 1)]) == pytest.approx(full_seconds(800, 1))


@pytest.mark.parametrize("at_short, at_long", [(1.0, 1.0), (0.0, 1.0), (1e-3, 1.0), (1.0, 1e-3)])
def test_noise_makes_no_speed_negative(at_short, at_long):
    speed = Speed()
    speed.measure(800, lambda n: Measured(0.0, 0.5, at_long if n == 800 else at_short), ONE_CHUNK)
    times = [speed.seconds([(n, 1)]) for n in range(1, 2000, 50)]
    assert times == sorted(times) and times[0] >= 0
    assert speed.seconds([(800, 1)]) == pytest.approx(max(at_long, 0.5))  # a first layer that was faster takes as long


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
    least, most = math.ceil(0.05 * n_tokens), full_seconds(n_tokens)

    def seconds(n_kept: int) -> float:
        return (
            overhead(n_tokens) + (layer + 1) * layer_seconds(n_tokens) + (N_LAYER - layer - 1) * layer_seconds(n_kept)
        )

    previous = least
    for goal in np.linspace(seconds(least), most, 12)[1:-1]:
        n_kept = choose(f"ttft:{1000 * goal:.6f}ms").kept(n_tokens)
        assert seconds(n_kept) <= goal * (1 + 1e-6) < seconds(n_kept + 1) * (1 + 2e-6)
        assert least <= previous <= n_kept < n_tokens
        previous = n_kept
    assert choose(f"ttft:{most + 0.001:.6f}s").kept(n_tokens) == n_tokens
    assert choose(f"ttft:{most - 0.001:.6f}s").kept(n_tokens) < n_tokens
    for goal in (seconds(least) - 0.1, 0.001):
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
    rule = choose("ttft:20s")
    before = rule.kept(1600)
    exact = report_of(1600, before, 3)
    rule.annotate(exact)
    assert rule.kept(1600) == before  # it took what was predicted
    rule.annotate(dataclasses.replace(exact, prefill_seconds=1.3 * exact.prefill_seconds))
    slower = rule.kept(1600)
    assert slower < before
    for _ in range(30):  # of a machine that stays slower
        rule.annotate(report_of(1600, slower, 3, 1.3 * report_of(1600, slower, 3).prefill_seconds))
    ratio = rule._predict(1600, 400) / choose("ttft:9s")._predict(1600, 400)
    assert ratio == pytest.approx(1.3, rel=1e-3)
    rule.annotate(report_of(1600, 400, 3, 1e9))  # an outlier counts as 8 times slower
    assert rule._predict(1600, 400) / choose("ttft:9s")._predict(1600, 400) <= 1.3 * 8**0.5 * 1.001


def test_the_layer_that_is_expected(choose):
    """The policy's first one; then what prompts have met, the newest half of it."""
    rule = choose("ttft:9s", SpanASL(min_layer=1, obs_layers=2))
    assert "selection layer 2, the policy's first;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    assert "selection layer 3, of earlier prompts;" in rule.annotate(report_of(1600, 400, None)).budget_choice
    assert "selection layer 4, of earlier prompts;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    assert "for all 1,600 tokens" in rule.annotate(report_of(1600, 1600)).budget_choice
    assert "selection layer 4, of earlier prompts;" in rule.annotate(report_of(1600, 400, 3)).budget_choice
    firsts = {name: make_policy(name).first_selection(30) for name in REGISTRY if make_policy(name).first_selection(30)}
    assert firsts == {"asl-span": 18, "asl": 10, "asl-two-pass": 10, "fastkv": 14, "gemfilter": 12}
    assert PyramidInfer().first_selection(30) == 0 and SpanASL(min_layer=9, tau=2).first_selection(30) == 9
    assert {name for name in REGISTRY if make_policy(name).first_selection(30) is None} == {
        "snapkv",
        "streaming_llm",
        "none",
    }


def test_reports(choose):
    rule = choose("ttft:20s")
    n_kept = rule.kept(1600)
    assert re.fullmatch(
        rf"ttft:20s: 20\.0 s predicted for {n_kept} of 1,600 tokens \(selection layer 3, the policy's first; 2,\d\d\d us per "
        r"token and layer\)",
        rule.annotate(report_of(1600, n_kept, 3)).budget_choice,
    )
    assert re.fullmatch(
        r"ttft:20s: 7\.\d s predicted for all 700 tokens \(1,\d\d\d us per token and layer\)",
        rule.annotate(report_of(700, 700)).budget_choice,
    )
    assert rule.annotate(report_of(200, 200)).budget_choice == "ttft:20s: all 200 tokens, the prompt is short"
    rule = choose("ttft:900ms")
    assert re.fullmatch(
        r"ttft:900ms: out of reach, 17\.0 s predicted for 80 of 1,600 tokens \(selection layer 3, .*\)",
        rule.annotate(report_of(1600, rule.kept(1600), 3)).budget_choice,
    )


def test_measuring_counts(choose, machine):
    """A prompt more than twice as long as any before it is measured, and its time shortens the prefill."""
    rule, begun = choose("ttft:28s", measured=0), []
    rule.measure(SESSION, [0] * 200, lambda: begun.append(1))
    assert machine == [] and rule.kept(200) == 200
    assert rule.kept(1600) == 80  # nothing is known yet
    assert rule.measure(SESSION, [0] * 1600, lambda: begun.append(1)) == pytest.approx(spent(1600))
    assert machine == [32, 200, 1600] and begun == [1]
    first = rule.kept(1600)
    report = rule.annotate(report_of(1600, first, 3))
    assert report.seconds["measuring"] == pytest.approx(spent(1600)) and "28.0 s predicted" in report.budget_choice
    assert report.prefill_seconds == pytest.approx(28.0, abs=0.02)
    assert rule.measure(SESSION, [0] * 3200, lambda: begun.append(1)) == 0
    assert rule.kept(1600) > first and begun == [1]
    assert rule.measure(SESSION, [0] * 3201, lambda: begun.append(1)) > 0


def test_turns(choose):
    """A turn is evaluated as it is if that is in time, or sooner than pruning everything."""
    rule = choose("ttft:2s")
    assert rule.extends(200, 500) and rule.extends(0, 500)
    assert not rule.extends(1900, 10)  # 2 seconds are too few for it; pruned, it takes less
    assert rule.extends(500, 3000)  # 12 seconds, but all of it anew takes longer
    unmeasured = choose("ttft:2s", measured=0)
    assert unmeasured.extends(300, 3000) and not unmeasured.extends(3000, 1)


@pytest.mark.parametrize("policy", ["snapkv", "streaming_llm"])
def test_policies_that_no_choice_makes_faster(tiny_model, policy, capsys):
    with pytest.raises(OptionError, match=f"expected a policy whose deeper layers see fewer .* got {policy}, "):
        Llama(str(tiny_model("llama")), asl_budget="ttft:5s", asl_policy=policy)
