"""Turns that follow what a decode context holds, layer by layer (Session.extend)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.errors import NativeError, PrefillCancelled
from asl_gguf.native.session import Session
from harness import F16, F32, Q8_0, Context, assert_same, llama_cpp, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES, SLIDING
from turns import (
    ANSWER,
    N_KEPT,
    OPTIONS,
    POLICIES,
    TOKENS,
    TURN,
    WINDOW,
    give_past,
    kept_of,
    prune_turn,
    snapshot,
)


@pairs(architecture=ARCHITECTURES + SLIDING, policy=POLICIES.values(), flash=[False, True])
def test_nothing_dropped_is_stock(load_tiny, architecture, policy, flash):
    """Bit for bit what llama_decode of the turn gives in that context, pruned or not: same cells, same sums."""
    options = replace(OPTIONS, flash=flash)
    with load_tiny(architecture).context(options) as context, load_tiny(architecture).context(options) as stock:
        session = give_past(context, policy)
        give_past(stock, policy)
        stock.decode(TURN)
        session.extend(TURN, WINDOW)
        info = session.info()
        assert info.n_past == (len(TOKENS) if policy is None else N_KEPT) + 2
        assert info.n_current == info.n_tokens == info.n_past + len(TURN)
        session.finish()
        if architecture in SLIDING and policy is not None:
            # cells of sliding layers lie elsewhere than in the prefill context, and sums follow the cells
            found, expected = context.continuation(ANSWER), stock.continuation(ANSWER)
            np.testing.assert_allclose(found, expected, atol=1e-3)
        else:
            assert context.get_state() == stock.get_state()
            assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


@pairs(kv=[F16, Q8_0, F32], flash=[False, True])
def test_types(load_tiny, kv, flash):
    """Two turns, the second after rows that were kept."""
    options = replace(OPTIONS, kv=kv, flash=flash)
    with load_tiny("llama").context(options) as context, load_tiny("llama").context(options) as stock:
        for used in (context, stock):
            session = give_past(used, POLICIES["by-head"])
            prune_turn(session, TURN, kept_of(len(TURN)))
        assert context.get_state() == stock.get_state()
        session = context._sessions[0]
        session.extend(TURN[:50], WINDOW)
        session.finish()
        stock.decode(TURN[:50])
        assert context.get_state() == stock.get_state()
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


@pairs(architecture=["llama", "gemma3", "cohere2"], policy=POLICIES.values())
def test_a_pruned_turn(load_tiny, architecture, policy):
    """Its kept tokens have cells of their own, at their positions; the past's rows and cells are what they were."""
    with load_tiny(architecture).context(OPTIONS) as context:
        session = give_past(context, policy)
        before, past = context.get_state(), Rows(context)
        kept = kept_of(len(TURN))
        prune_turn(session, TURN, kept)
        after = Rows(context)
        n_past = len(past.positions)
        assert after.positions[:n_past] == past.positions
        assert after.positions[n_past:] == (len(TOKENS) + 2 + kept).tolist()
        assert after.keys[:, :n_past].tobytes() == past.keys.tobytes()
        # the turn is removed as any tail is
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, len(TOKENS) + 2, -1)
        if architecture == "llama":
            assert context.get_state() == before
        assert Rows(context).positions == past.positions


class Rows:
    """Positions and keys of full layers, by way of the state."""

    def __init__(self, context: Context) -> None:
        state = np.frombuffer(context.get_state(), np.uint8)
        words = state[: state.size // 4 * 4].view("<i4")
        n_cells = int(words[3])
        self.positions = words[4 : 4 + 3 * n_cells : 3].tolist()
        sliding = context._sessions[0].sliding
        at, keys = 4 * (4 + 3 * n_cells) + 8, []
        for _ in range(sliding.count(False)):
            n_row = int(state[at + 4 : at + 12].copy().view("<i8")[0])
            keys.append(state[at + 12 : at + 12 + n_cells * n_row].reshape(n_cells, n_row))
            at += 12 + n_cells * n_row
        self.keys = np.array(keys)


def test_scores_cover_the_past(load_tiny):
    """Those of a turn after an unpruned past are those of prompt and turn in one prefill."""
    with load_tiny("llama").context(OPTIONS) as context, load_tiny("llama").context(OPTIONS) as whole:
        session, other = give_past(context, None), whole.session()
        session.extend(TURN, WINDOW)
        other.begin([*TOKENS, 80, 81, *TURN], WINDOW)
        for _ in range(context.model.n_layer):
            session.run(1, True)
            other.run(1, True)
            assert session.scores().shape == other.scores().shape
            np.testing.assert_allclose(session.scores(), other.scores(), atol=5e-3)
            np.testing.assert_allclose(session.queries(), other.queries(), atol=2e-2)
            np.testing.assert_allclose(session.keys(), other.keys(), atol=2e-2)
            session.keep_rows(None)
            session.set_window(WINDOW)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt-oss"])
def test_chunks_change_nothing(load_tiny, architecture):
    """But for the order of sums."""
    results = []
    for n_batch, n_ubatch in ((24, 24), (40, 24), (64, 64)):
        with load_tiny(architecture).context(replace(OPTIONS, n_batch=n_batch, n_ubatch=n_ubatch)) as context:
            session = give_past(context, POLICIES["selected"])
            prune_turn(session, TURN, kept_of(len(TURN)))
            results.append(context.continuation(ANSWER))
    for found in results[1:]:
        np.testing.assert_allclose(found, results[0], atol=1e-3)


@pairs(architecture=SLIDING, swa_full=[True, False])
def test_sliding_cells(load_tiny, architecture, swa_full):
    """Turns longer than the cells of sliding layers, and short ones, one after another, against llama_decode."""
    options = replace(OPTIONS, n_ctx=1024, swa_full=swa_full, kv=F32)
    with load_tiny(architecture).context(options) as context, load_tiny(architecture).context(options) as stock:
        session = give_past(context, POLICIES["selected"])
        give_past(stock, POLICIES["selected"])
        for n_tokens in (300, 5, 90, 17):
            turn = prompt(n_tokens, seed=n_tokens)
            session.extend(turn, WINDOW)
            session.finish()
            stock.decode(turn)
            np.testing.assert_allclose(
                context.logits(), stock.logits(), atol=2e-3 if architecture == "gemma3" else 1e-4
            )
            for token in ANSWER:
                np.testing.assert_allclose(
                    context.decode([token]), stock.decode([token]), atol=2e-3 if architecture == "gemma3" else 1e-4
                )


def assert_unchanged(context: Context, session: Session, before: dict[str, object]) -> None:
    info = session.info()
    assert info.n_tokens == info.n_past == info.kv_bytes_prefill == 0
    assert snapshot(context) == before


@pairs(architecture=["llama", "gemma3"], how=["abort", "cancel", "begin again"])
def test_whatever_ends_it_early(load_tiny, architecture, how):
    """In every slice: the past is what it was, state bytes, logits and greedy continuation."""
    model = load_tiny(architecture)
    with model.context(OPTIONS) as context, model.context(OPTIONS) as untouched:
        session = give_past(context, POLICIES["selected"])
        give_past(untouched, POLICIES["selected"])
        before = snapshot(context)
        kept = kept_of(len(TURN))
        calls: list[int] = []
        session.set_progress(lambda done, _: calls.append(done))
        session.extend(TURN, WINDOW)
        session.start_finish()
        n_slices = 1 + sum(1 for _ in iter(session.step, False))
        assert len(calls) == n_slices - 1 and calls[-1] == len(TURN) * model.n_layer
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, len(TOKENS) + 2, -1)
        session = give_past(context, POLICIES["selected"])
        for at in range(1, min(n_slices, 16) if how == "cancel" else n_slices, 2):
            if how == "cancel":
                count = itertools.count(1)
                session.set_progress(lambda *_, at=at, count=count: next(count) < at)
                with pytest.raises(PrefillCancelled):
                    prune_turn(session, TURN, kept, n_layers=1 + at // 2 % 2)
            else:
                session.set_progress(None)
                session.extend(TURN, WINDOW)
                session.start_finish()
                for _ in range(at):
                    assert session.step()
                if how == "abort":
                    session.abort()
                else:
                    session.extend(TURN[:10], WINDOW)
                    session.run(1, True)
                    session.keep_rows(None) if not session.sliding[0] else None
                    session.abort()
            assert_unchanged(context, session, before)
        assert context.greedy(8) == untouched.greedy(8)
        assert_same([context.logits()], [untouched.logits()])


def test_an_error_in_the_middle(load_tiny):
    """Of the context's abort callback, which stops the remaining layers."""
    with load_tiny("llama").context(OPTIONS) as context:
        session = give_past(context, POLICIES["selected"])
        before = snapshot(context)
        stop = llama_cpp.ggml_abort_callback(lambda _: True)
        session.extend(TURN, WINDOW)
        session.run(1, False)
        session.keep_rows(None)
        llama_cpp.llama_set_abort_callback(context.handle, stop, None)
        with pytest.raises(PrefillCancelled):
            session.finish()
        llama_cpp.llama_set_abort_callback(context.handle, llama_cpp.ggml_abort_callback(), None)
        assert_unchanged(context, session, before)


def test_holes_among_the_cells(load_tiny):
    """Cells of removed tokens: the past is what is left, and new rows lie after it."""
    options = replace(OPTIONS, kv=F32)
    with load_tiny("llama").context(options) as context, load_tiny("llama").context(options) as stock:
        for used in (context, stock):
            give_past(used, None)
            assert llama_cpp.llama_memory_seq_rm(used.memory, 0, 20, 60)
        session = context._sessions[0]
        session.extend(TURN, WINDOW)
        assert session.info().n_past == len(TOKENS) + 2 - 40
        session.finish()
        np.testing.assert_allclose(context.logits(), stock.decode(TURN), atol=1e-4)
        positions = context.cells().positions
        assert positions == [*range(20), *range(60, len(TOKENS) + 2 + len(TURN))]


def test_the_context_is_used_meanwhile(load_tiny):
    with load_tiny("llama").context(OPTIONS) as context:
        session = give_past(context, None)
        session.extend(TURN, WINDOW)
        context.decode([70])
        state = context.get_state()
        with pytest.raises(NativeError, match="the decode context was used during the prefill"):
            session.finish()
        assert context.get_state() == state
