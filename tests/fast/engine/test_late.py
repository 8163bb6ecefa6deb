"""A budget that is decided at the selection layer: what is kept is what that budget would have kept from the start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Replay, record
from asl_gguf.policies import ASL, SpanASL
from harness import F16, Q8_0, Options, prompt
from prefills import untimed
from twins import assert_rows

OPTIONS = Options(n_batch=64, n_ubatch=32)
TOKENS = prompt(300)
POLICY = ASL(window=8, min_layer=2, obs_layers=2, obs_tokens=16, tau=2)
"""keeps the best of the best: its window and its reach do not follow the budget"""
POLICIES = {
    "per-head": POLICY,
    "uneven": replace(POLICY, cache_k=90),
    "all-rows": replace(POLICY, cache_k="all"),
    "span": SpanASL(window=8, min_layer=2, obs_layers=2, obs_tokens=16, tau=2, back_room=0),
}


class Late:
    """Chooses n_kept tokens at a layer; what it saw when it was asked is in `seen`."""

    n_held, n_most, n_window, n_asking = 150, 150, 106, 0
    n_queries = 20
    """more than the windows of these policies: what they rank stays theirs, to the last bit"""

    def __init__(self, n_kept: int, layer: int = 0) -> None:
        self._n_kept, self._layer, self.spreads = n_kept, layer, layer > 0
        self.crowded = False
        self.seen: list = []
        self.n_asked = 0

    def reads(self, layer: int) -> bool:
        return True

    def see(self, scores) -> None:
        assert scores.queries.shape[0] == max(scores.window, self.n_queries) and len(scores.keys) == scores.n_current
        self.seen.append(scores)

    def choose(self, layer: int, last: int) -> int | None:
        self.n_asked += 1
        assert layer <= last
        return self._n_kept if layer >= self._layer else None


@pytest.mark.parametrize("kv, flash", [(F16, False), (F16, True), (Q8_0, True)], ids=["plain", "flash", "q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_late_budget_is_that_budget(load_tiny, name, architecture, kv, flash):
    model, policy = load_tiny(architecture), POLICIES[name]
    if architecture == "gemma3":
        policy = replace(policy, min_layer=1)
    late = Late(60)
    found = []
    with model.context(replace(OPTIONS, kv=kv, flash=flash)) as context:
        session = context.session()
        for n_kept, decides in ((60, None), (150, late)):
            report = prefill(session, TOKENS, policy, n_kept, late=decides)
            found.append((untimed(report), context.logits().tolist(), context.greedy(4), context.logits().tolist()))
    assert found[0] == found[1]
    assert found[1][0]["budget_tokens"] == len(found[1][0]["selected"]) == 60
    assert late.n_asked == 1 and late.seen[-1].layer == found[1][0]["selection_layer"]
    assert all(scores.n_current == len(TOKENS) for scores in late.seen)


def test_the_limit_itself(load_tiny):
    """Nothing goes where the most is chosen."""
    model, late = load_tiny("llama"), Late(150)
    with model.context(OPTIONS) as context:
        session = context.session()
        reports = [untimed(prefill(session, TOKENS, POLICY, 150, late=decides)) for decides in (None, late)]
    assert reports[0] == reports[1] and late.n_asked == 1


def test_nothing_is_asked_where_nothing_is_selected(load_tiny):
    model, late = load_tiny("llama"), Late(60)
    with model.context(OPTIONS) as context:
        report = prefill(context.session(), TOKENS, replace(POLICY, tau=0), 150, late=late)
    assert report.selection_layer is None and report.kept_tokens == 150 and not late.n_asked


def test_from_a_record(load_tiny):
    """A replay stands in for the session: the rows that go are the session's."""
    model = load_tiny("llama")
    with model.context(OPTIONS) as context:
        session = context.session()
        direct = untimed(prefill(session, TOKENS, POLICY, 150, late=Late(60)))
        expected = context.get_state(), context.greedy(4)
        replay = Replay(session, record(session, TOKENS, 8))
        assert untimed(prefill(replay, TOKENS, POLICY, 150, late=Late(60))) == direct
        assert (context.get_state(), context.greedy(4)) == expected


def test_protected_tokens_stay(load_tiny):
    model, protected = load_tiny("llama"), np.arange(100, 130, dtype=np.int32)
    with model.context(OPTIONS) as context:
        report = prefill(context.session(), TOKENS, POLICY, 150, late=Late(60), protected=protected)
    assert set(protected.tolist()) <= set(report.selected) and len(report.selected) == 60


def test_the_window_is_that_of_the_middle(load_tiny):
    """The scores come before the budget: the window's size follows neither limit."""
    model, late = load_tiny("llama"), Late(60)
    policy = SpanASL(min_layer=2, obs_layers=2, tau=2)
    with model.context(OPTIONS) as context:
        prefill(context.session(), TOKENS, policy, 280, late=late)
    assert late.seen[0].window == policy.window_of(300, 106) == 13


@pytest.mark.parametrize("kv, flash", [(F16, False), (Q8_0, True)], ids=["plain", "q8_0"])
def test_a_deeper_layer_selects_and_earlier_ones_follow(load_tiny, kv, flash):
    """What was selected late has its K/V in all layers that held them."""
    model, late = load_tiny("llama"), Late(60, layer=4)
    with model.context(replace(OPTIONS, kv=kv, flash=flash)) as context:
        session = context.session()
        direct = prefill(session, TOKENS, replace(POLICY, min_layer=3), 60)
        report = prefill(session, TOKENS, replace(POLICY, min_layer=3), len(TOKENS), late=late, always_ask=True)
        assert direct.selection_layer == 3 and report.selection_layer == 4 and late.n_asked == 2
        assert len(report.selected) == 60 and set(report.rows_by_layer) == {60}
        cells = context.cells()
        context.prefill(TOKENS)
        assert_rows(cells, context.cells(), [np.array(report.selected)] * 4)


def test_own_rows_fill_what_a_layer_did_not_hold(load_tiny):
    model, late, chosen = load_tiny("llama"), Late(60, layer=4), []

    class Watched(ASL):
        def fewer_rows(self, scores, held, n_kept, tokens=None):
            rows = super().fewer_rows(scores, held, n_kept, tokens)
            chosen.append((held, tokens, rows))
            return rows

    policy = Watched(window=8, min_layer=3, obs_layers=2, obs_tokens=16, tau=2)
    with model.context(OPTIONS) as context:
        prefill(context.session(), TOKENS, policy, 100, late=late)
    assert len(chosen) == 5
    for held, tokens, rows in chosen:
        for of_head, left in zip(held, rows):
            assert set(left) <= set(of_head) and set(tokens) & set(of_head) <= set(left) and left.size == 60
    assert any(set(left) != set(tokens) for _, tokens, rows in chosen for left in rows)
