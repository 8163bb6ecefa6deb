"""K/V of whole prompts kept on the host: every policy selects from them what it would from a prompt that runs whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from asl_gguf.budget.guard import Guard
from asl_gguf.cache.host_kv import HostKV
from asl_gguf.engine.guarded import guarded_slices
from asl_gguf.engine.layers import drained
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.reusing import ReusingLayers
from asl_gguf.errors import AttentionMassError, PrefillCancelled
from asl_gguf.inspect.recorder import PolicyRecorder
from asl_gguf.policies import FastKV, Full, Policy, PyramidInfer, SnapKV, TwoPassASL
from asl_gguf.report import PrefillReport
from full_kv_prompts import EARLIER, N_BORDER, N_CTX, N_KEPT, N_TOKENS, TOKENS, keep
from harness import KVState, assert_same, prompt
from pairs import all_pairs
from prefills import POLICIES as REPLAYED
from prefills import Interrupt, untimed
from tiny_llama import SETTLES
from twins import assert_rows

N_LAYER = 6
ANSWER = [70, 71, 72]
POLICIES: dict[str, Policy] = {
    **REPLAYED,
    "span-selects": SETTLES,
    "two-pass-selects": TwoPassASL(min_layer=2, obs_layers=2, tau=2),
    "pyramid-steep": PyramidInfer(min_context=12),
}

with_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def with_policy_and_flash(first: bool) -> pytest.MarkDecorator:
    """Each policy once, flash attention in turns: a test that begins with it meets what one that does not leaves out."""
    cases = [(policy, (i % 2 == 0) == first) for i, policy in enumerate(POLICIES.values())]
    ids = [f"{name}-{'flash' if flash else 'plain'}" for name, (_, flash) in zip(POLICIES, cases)]
    return pytest.mark.parametrize("policy, contexts", cases, ids=ids, indirect=["contexts"])


def as_computed(report: PrefillReport) -> dict[str, Any]:
    """What does not depend on how much was there already."""
    return untimed(report) | {"token_layers": 0, "reused_tokens": 0, "full_kv_bytes": 0}


def depth_of(report: PrefillReport) -> int:
    """Layers that saw all tokens."""
    return N_LAYER if report.selection_layer is None else report.selection_layer + 1


@with_policy_and_flash(False)
def test_a_first_prompt_runs_as_ever(contexts, policy):
    """And K/V of the layers that saw all of it are there, with what they put out."""
    plain, keeping = contexts
    kept = HostKV()
    expected = prefill(plain.session(N_CTX), TOKENS, policy, N_KEPT)
    report = keep(keeping, kept, policy)
    assert untimed(report) == untimed(expected) | {"full_kv_bytes": kept.n_bytes}
    assert keeping.get_state() == plain.get_state()
    assert_same(keeping.continuation(ANSWER), plain.continuation(ANSWER))
    if report.passes == 2:
        assert kept.tokens == () and kept.n_bytes == 0
        return
    session = plain.session(N_CTX)
    session.begin(TOKENS, 1)
    assert kept.tokens == tuple(TOKENS) and kept.depth == depth_of(report)
    for layer in kept.layers:
        session.run(1, False)
        assert np.array_equal(layer, session.save_rows(0, N_TOKENS))
    if kept.depth < N_LAYER:
        assert np.array_equal(kept.hidden, session.save_hidden(0, N_TOKENS))
    else:
        assert kept.hidden is None


def chosen(watch: PolicyRecorder) -> list[np.ndarray]:
    """Prompt tokens whose rows each layer keeps: int32 [k] or [n_head_kv, k]."""
    current, result = np.arange(N_TOKENS, dtype=np.int32), []
    for _, decision in watch.seen:
        result.append(current if decision.rows is None else current[decision.rows])
        current = current if decision.tokens is None else current[decision.tokens]
    return result + [current] * (N_LAYER - len(result))


def newest_cells(cells: KVState, counts: Sequence[int]) -> KVState:
    """What each layer holds, if these are their numbers of rows."""
    keys, values = ([rows[-n:] for rows, n in zip(layers, counts)] for layers in (cells.keys, cells.values))
    return KVState([], keys, values)


@with_policy_and_flash(False)
def test_behind_all_layers_no_token_is_dropped(contexts, policy):
    """The prompt before was cut down nowhere: this one keeps rows that all tokens had a part in."""
    context, keeping = contexts
    expected = prefill(context.session(N_CTX), TOKENS, policy, N_KEPT)
    plain = context.cells()
    watch, kept = PolicyRecorder(policy), HostKV()
    keep(keeping, kept, Full(), EARLIER)
    report = keep(keeping, kept, watch.policy)
    assert report.rows_by_layer == expected.rows_by_layer and report.selection_layer == expected.selection_layer
    assert report.kept_tokens == expected.kept_tokens and report.passes == expected.passes
    assert report.reused_tokens == N_BORDER
    if report.passes == 2:
        assert report.selected == expected.selected and keeping.get_state() == context.get_state()
        assert kept.tokens == tuple(EARLIER)
        return
    assert report.token_layers == (N_TOKENS - N_BORDER) * N_LAYER and kept.depth == N_LAYER
    cells, full = keeping.cells(), context.prefill(TOKENS)
    indices = chosen(watch)
    assert tuple(index.shape[-1] for index in indices) == report.rows_by_layer
    assert_rows(newest_cells(cells, report.rows_by_layer), context.cells(), indices)
    assert_same([keeping.logits()], [full])  # no token was dropped before they were there
    ours, theirs = (newest_cells(found, report.rows_by_layer) for found in (cells, plain))
    for layer in range(depth_of(report)):
        assert np.array_equal(ours.keys[layer], theirs.keys[layer])
        assert np.array_equal(ours.values[layer], theirs.values[layer])
    assert list(report.selected) == sorted(set(report.selected))
    if policy.name != "pyramidinfer":  # which selects again in layers that differ
        assert report.selected == expected.selected


@with_policy_and_flash(True)
def test_a_past_changes_nothing(contexts, policy):
    """Where both prompts are cut down at one layer, or this one at a later one; the work is what the report says."""
    context, other = contexts
    empty, kept, calls = HostKV(), HostKV(), []
    expected = keep(context, empty, policy)
    assert expected.reused_tokens == 0
    n_before = depth_of(keep(other, kept, policy, EARLIER))
    if expected.passes == 2:  # which keep nothing of their own
        keep(other, kept, FastKV(tsp_layer=n_before - 1), EARLIER)
    assert kept.depth == n_before <= depth_of(expected)

    session = other.session(N_CTX)
    session.set_progress(lambda done, _: calls.append(done))
    keeping = ReusingLayers(session, kept)
    report = keeping.corrected(prefill(keeping, TOKENS, policy, N_KEPT))
    assert as_computed(report) == as_computed(expected)
    cells, others = (newest_cells(found.cells(), report.rows_by_layer) for found in (context, other))
    assert all(map(np.array_equal, cells.keys + cells.values, others.keys + others.values))
    assert other.cells().positions == context.cells().positions
    assert_same(other.continuation(ANSWER), context.continuation(ANSWER))
    assert report.reused_tokens == N_BORDER
    assert report.token_layers == expected.token_layers - N_BORDER * n_before
    passes = [done for done, following in zip(calls, [*calls[1:], 0]) if following < done]
    assert sum(passes) == report.token_layers and len(passes) == report.passes
    if report.passes == 2:
        assert kept.tokens == tuple(EARLIER) and empty.tokens == ()
    else:
        assert kept.tokens == empty.tokens == tuple(TOKENS)
        assert all(map(np.array_equal, kept.layers, empty.layers)) and kept.depth == depth_of(expected)
        assert (kept.hidden is None) == (empty.hidden is None)
        assert kept.hidden is None or np.array_equal(kept.hidden, empty.hidden)


def selecting_at(layer: int) -> FastKV:
    return FastKV(window=8, tsp_layer=layer)


@pytest.mark.long
@pytest.mark.parametrize(
    "contexts, before, layer", all_pairs([False, True], range(N_LAYER - 1), range(N_LAYER - 1)), indirect=["contexts"]
)
def test_any_layer_after_any_other(contexts, layer, before):
    """A later layer: as without a past. An earlier one: rows of the selected tokens, dropped where the record ends."""
    context, other = contexts
    kept, watch, deepest = HostKV(), PolicyRecorder(selecting_at(layer)), max(layer, before)
    keep(other, kept, selecting_at(before), EARLIER)
    report = keep(other, kept, watch.policy)

    session = context.session(N_CTX)
    session.begin(TOKENS, 8)
    selected = np.array(report.selected, dtype=np.int32)
    for il, rows in enumerate(chosen(watch)[: deepest + 1]):
        session.run(1, True)
        session.keep_rows(rows if il <= layer else selected)
    session.keep_tokens(selected)
    session.finish()
    assert other.get_state() == context.get_state()
    assert_same(other.continuation(ANSWER), context.continuation(ANSWER))
    expected = prefill(context.session(N_CTX), TOKENS, selecting_at(layer), N_KEPT)
    assert report.selected == expected.selected and report.rows_by_layer == expected.rows_by_layer
    n_deeper = N_LAYER - 1 - deepest
    n_all = N_TOKENS * (deepest - before) + (N_TOKENS - N_BORDER) * (before + 1)
    assert report.token_layers == n_all + selected.size * n_deeper and kept.depth == deepest + 1


@with_policy
def test_the_same_prompt_again(contexts, policy):
    """All but the window's tokens are loaded, however large the policy's window is."""
    context, other = contexts
    kept = HostKV()
    for _ in range(2):
        report = keep(other, kept, policy)
    expected = keep(context, HostKV(), policy)
    n_past = N_TOKENS - policy.window_of(N_TOKENS, N_KEPT)
    assert report.reused_tokens == (0 if report.passes == 2 else n_past)
    assert report.rows_by_layer == expected.rows_by_layer
    np.testing.assert_allclose(other.logits(), context.logits(), atol=0.05)


class Looking(PyramidInfer):
    """Drops tokens in every layer, and looks at the keys of those that are left."""

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        return True


def test_policies_see_the_tokens_that_are_left(contexts):
    """Their keys, and their share of an attention that all tokens have a part in."""
    watch, current, kept = PolicyRecorder(Looking(min_context=12)), np.arange(N_TOKENS, dtype=np.int32), HostKV()
    keep(contexts[0], kept, Full(), EARLIER)
    keep(contexts[0], kept, watch.policy)
    session = contexts[1].session(N_CTX)
    session.begin(TOKENS, 1)
    for scores, decision in watch.seen:
        session.set_window(scores.window, watch.policy.weights_of(scores.window))
        session.run(1, True)
        assert np.array_equal(scores.keys, session.keys()[current])
        assert np.array_equal(scores.attention, session.scores()[:, current])
        assert np.array_equal(scores.queries, session.queries())
        current = current if decision.tokens is None else current[decision.tokens]
    assert current.size < N_KEPT


def test_protected_tokens(contexts):
    context, other = contexts
    kept, protected = HostKV(), np.arange(3, 60, 2, dtype=np.int32)
    keep(other, kept, SETTLES, EARLIER)
    expected = keep(context, HostKV(), SETTLES, protected=protected)
    report = keep(other, kept, SETTLES, protected=protected)
    assert as_computed(report) == as_computed(expected) and report.protected_tokens == protected.size
    assert np.isin(protected, report.selected).all() and report.reused_tokens == N_BORDER
    assert_same(other.continuation(ANSWER), context.continuation(ANSWER))


def test_guard(contexts):
    """Attempts that fall short keep nothing; the last one finds what was there before."""
    context, other = contexts
    kept = HostKV()
    keep(other, kept, Full(), EARLIER)
    options = {"guard": Guard(0.9), "n_most": N_TOKENS}
    expected = drained(guarded_slices(context.session(N_CTX), TOKENS, SnapKV(), N_KEPT, **options))
    session = ReusingLayers(other.session(N_CTX), kept)
    report = session.corrected(drained(guarded_slices(session, TOKENS, SnapKV(), N_KEPT, **options)))
    assert report.guard_attempts == expected.guard_attempts and len(report.guard_attempts) > 0
    assert as_computed(report) == as_computed(expected) and report.reused_tokens == N_BORDER
    assert_same(other.continuation(ANSWER), context.continuation(ANSWER))


class Broken(SnapKV):
    def needs_scores(self, layer: int, n_layer: int) -> bool:
        if layer == 2:
            raise RuntimeError("a bug of the policy")
        return True


@pytest.mark.parametrize("how", ["guard", "policy", 1, 6, 13, 30])
def test_a_prefill_that_fails_leaves_what_was_kept(contexts, how):
    """The 90 tokens that run come in 5 chunks, through 6 layers: 30 calls of the progress callback."""
    context, other = contexts
    kept = HostKV()
    keep(other, kept, Full(), EARLIER)
    earlier, session = (kept.tokens, kept.layers), other.session(N_CTX)
    keeping = ReusingLayers(session, kept)
    if isinstance(how, int):
        session.set_progress(Interrupt(how, False))
    error = {"guard": AttentionMassError, "policy": RuntimeError}.get(how, PrefillCancelled)
    policy = Broken() if how == "policy" else SnapKV()
    with pytest.raises(error):
        prefill(keeping, TOKENS, policy, N_KEPT, guard=1.0 if how == "guard" else None)
    assert (kept.tokens, kept.layers) == earlier and session.info().n_tokens == session.info().n_cells_used == 0
    session.set_progress(None)
    report = keeping.corrected(prefill(keeping, TOKENS, SnapKV(), N_KEPT))
    assert report.reused_tokens == N_BORDER and kept.tokens == tuple(TOKENS)
    keep(context, HostKV(), SnapKV())
    assert_same(other.continuation(ANSWER), context.continuation(ANSWER))


def test_what_is_kept():
    kept = HostKV()
    assert (kept.n_bytes, kept.n_common([1, 2]), kept.n_common([])) == (0, 0, 0)
    first, second = [np.full((4, 8), layer, np.uint8) for layer in (1, 2)], [np.full((3, 8), 3, np.uint8)] * 2
    kept.put([5, 6, 7, 8], 0, first, None)
    assert kept.n_bytes == 64 and kept.depth == 2
    prompts = ([5, 6, 7, 8, 9], [5, 6, 7, 8], [5, 6], [5, 6, 1, 8], [1, 6, 7, 8], [])
    assert [kept.n_common(tokens) for tokens in prompts] == [4, 4, 2, 2, 0, 0]
    third, hidden = np.full((5, 8), 4, np.uint8), np.zeros((5, 2), np.float32)
    kept.put([5, 6, 1, 2, 3], 2, [*second, third], hidden)
    assert [layer[:, 0].tolist() for layer in kept.layers] == [[1, 1, 3, 3, 3], [2, 2, 3, 3, 3], [4] * 5]
    assert kept.tokens == (5, 6, 1, 2, 3) and kept.n_bytes == 120 + 40 and kept.hidden is hidden
    kept.put([9], 0, [np.zeros((1, 8), np.uint8)] * 2, None)
    assert kept.tokens == (9,) and kept.n_bytes == 16 and kept.hidden is None
    kept.clear()
    assert (kept.n_bytes, kept.tokens, kept.n_common([9])) == (0, (), 0)


@pytest.mark.parametrize("n_shared, n_past", [(31, 0), (32, 32)])
def test_a_short_start_is_not_worth_it(contexts, n_shared, n_past):
    kept = HostKV()
    keep(contexts[0], kept, SnapKV())
    tokens = TOKENS[:n_shared] + prompt(100, seed=2)
    assert keep(contexts[0], kept, SnapKV(), tokens).reused_tokens == n_past
    assert kept.tokens == tuple(tokens)
