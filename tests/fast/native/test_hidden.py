"""Hidden states that are loaded behind loaded K/V (Session.load_hidden): from then on the past is like other tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asl_gguf.errors import AslError, NativeError, OptionError
from asl_gguf.native.session import Session
from harness import F16, F32, KV_NAMES, Q8_0, Context, Options, assert_same, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES

N_LAYER = 6
N_TOKENS = 150
N_PAST = 64
"""a border of chunks, so that nothing differs from a prefill of all tokens"""
WINDOW = 8
TOKENS = prompt(N_TOKENS)
ANSWER = [70, 71, 72]
KEPT = np.r_[0:4, 20:40, 60:70, 100:120, N_TOKENS - WINDOW : N_TOKENS].astype(np.int32)

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0, F32], ids=KV_NAMES.get)
DEPTHS = (1, 3, 5)

Past = tuple[list[np.ndarray], np.ndarray]


def record(context: Context, tokens: list[int], depth: int) -> Past:
    """K/V of the first `depth` layers, and what they put out."""
    session, rows = context.session(), []
    session.begin(tokens, 1)
    for _ in range(depth):
        session.run(1, False)
        rows.append(session.save_rows(0, len(tokens)))
    hidden = session.save_hidden(0, len(tokens))
    session.abort()
    return rows, hidden


def go_on(session: Session, past: Past, n_past: int, kept: np.ndarray | None) -> None:
    """All of TOKENS, the first n_past loaded up to where the record ends; then only `kept` of them, if given."""
    rows, hidden = past
    session.begin(TOKENS, WINDOW)
    session.set_past(n_past)
    for layer in rows:
        session.load_rows(layer[:n_past])
        session.run(1, True)
        session.keep_rows(kept)
    session.load_hidden(hidden[:n_past])
    if kept is not None:
        session.keep_tokens(kept)
    session.finish()


def go_through(session: Session, depth: int, kept: np.ndarray | None) -> None:
    """The same without a past."""
    session.begin(TOKENS, WINDOW)
    for _ in range(depth):
        session.run(1, True)
        session.keep_rows(kept)
    if kept is not None:
        session.keep_tokens(kept)
    session.finish()


@pairs(architecture=ARCHITECTURES, flash=[False, True], kv=[F16, Q8_0, F32])
def test_nothing_dropped_is_stock(load_tiny, architecture, flash, kv):
    model, options = load_tiny(architecture), Options(flash=flash, kv=kv)
    with model.context(options) as context, model.context(options) as stock:
        stock.prefill(TOKENS)
        state, expected = stock.get_state(), stock.continuation(ANSWER)
        for depth in DEPTHS:
            context.clear()
            go_on(context.session(), record(context, TOKENS[:N_PAST], depth), N_PAST, None)
            assert context.get_state() == state, f"the saved states differ at depth {depth}"
            assert_same(context.continuation(ANSWER), expected, f"depth {depth}")


@pairs(depth=DEPTHS, flash=[False, True], kv=[F16, Q8_0, F32])
def test_dropped_tokens_are_those_of_a_prefill(load_tiny, depth, flash, kv):
    model, options = load_tiny("llama"), Options(flash=flash, kv=kv)
    with model.context(options) as context, model.context(options) as other:
        # more was recorded than is used
        past = record(context, TOKENS[:N_PAST] + prompt(30, seed=5), depth)
        go_on(context.session(), past, N_PAST, KEPT)
        go_through(other.session(), depth, KEPT)
        assert_same([context.logits()], [other.logits()])
        assert context.get_state() == other.get_state()
        assert_same(context.continuation(ANSWER), other.continuation(ANSWER))


def test_a_past_that_ends_within_a_chunk(load_tiny):
    """Without flash attention borders of chunks change nothing."""
    with load_tiny("llama").context() as context, load_tiny("llama").context() as stock:
        go_on(context.session(), record(context, TOKENS[:50], 3), 50, None)
        assert_same([context.logits()], [stock.prefill(TOKENS)])


def test_hidden_states_of_all_tokens_are_saved(load_tiny):
    """Loaded and computed ones alike, in whole and in parts."""
    with load_tiny("llama").context() as context:
        rows, hidden = record(context, TOKENS, 3)
        session = context.session()
        session.begin(TOKENS, WINDOW)
        session.set_past(N_PAST)
        for layer in rows:
            session.load_rows(layer[:N_PAST])
            session.run(1, False)
        assert np.array_equal(session.save_hidden(N_PAST, N_TOKENS), hidden[N_PAST:])
        session.load_hidden(hidden[:N_PAST])
        assert np.array_equal(session.save_hidden(0, N_TOKENS), hidden)
        assert np.array_equal(session.save_hidden(10, 90), hidden[10:90])
        assert hidden.shape == (N_TOKENS, 128) and not np.array_equal(hidden[0], hidden[1])


def test_progress_ends_at_its_total(load_tiny):
    seen = []
    with load_tiny("llama").context() as context:
        past = record(context, TOKENS[:N_PAST], 2)
        session = context.session()
        session.set_progress(lambda done, total: seen.append((done, total)))
        go_on(session, past, N_PAST, KEPT)
    assert seen[-1][0] == seen[-1][1] == 2 * (N_TOKENS - N_PAST) + 4 * KEPT.size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


LOADED = {
    "no-past": (lambda s, h: s.load_hidden(h), 0, NativeError, "expected tokens whose K/V were loaded"),
    "few": (lambda s, h: s.load_hidden(h[:9]), N_PAST, OptionError, "expected a buffer of 32768 bytes, got 4608"),
    "type": (
        lambda s, h: s.load_hidden(h.astype(np.float64)),
        N_PAST,
        OptionError,
        "expected float32 \\[n_past, 128\\]",
    ),
    "shape": (lambda s, h: s.load_hidden(h.ravel()), N_PAST, OptionError, "expected float32 \\[n_past, 128\\]"),
    "of-the-past": (
        lambda s, h: s.save_hidden(0, 99),
        N_PAST,
        OptionError,
        "expected tokens between 64 and 150, got 0 to 99",
    ),
    "beyond": (lambda s, h: s.save_hidden(70, 151), N_PAST, OptionError, "between 64 and 150, got 70 to 151"),
    "none": (lambda s, h: s.save_hidden(70, 70), N_PAST, OptionError, "between 64 and 150, got 70 to 70"),
}


@pytest.mark.parametrize("name", LOADED)
def test_errors_leave_the_prefill_as_it_was(load_tiny, name):
    call, n_past, error, message = LOADED[name]
    call: Callable[[Session, np.ndarray], object]
    error: type[AslError]
    with load_tiny("llama").context() as context, load_tiny("llama").context() as stock:
        rows, hidden = record(context, TOKENS, 1)
        session = context.session()
        session.begin(TOKENS, WINDOW)
        with pytest.raises(NativeError, match="no layer has run yet"):
            session.save_hidden(0, 1)
        session.set_past(n_past)
        if n_past:
            session.load_rows(rows[0][:n_past])
        session.run(1, False)
        session.keep_rows(None)
        with pytest.raises(error, match=message):
            call(session, hidden[: n_past or 5])
        if n_past:
            session.load_hidden(hidden[:n_past])
        session.finish()
        assert_same([context.logits()], [stock.prefill(TOKENS)])


def test_the_last_layer_has_none(load_tiny):
    with load_tiny("llama").context() as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        session.run(N_LAYER, False)
        with pytest.raises(NativeError, match="the last one has no hidden states"):
            session.save_hidden(0, 1)


def test_rows_loaded_for_the_next_layer_come_first(load_tiny):
    with load_tiny("llama").context() as context:
        rows, hidden = record(context, TOKENS, 2)
        session = context.session()
        session.begin(TOKENS, WINDOW)
        session.set_past(N_PAST)
        session.load_rows(rows[0][:N_PAST])
        session.run(1, False)
        session.load_rows(rows[1][:N_PAST])
        with pytest.raises(NativeError, match="a layer that ran over the others"):
            session.load_hidden(hidden[:N_PAST])
        session.run(1, False)
        session.load_hidden(hidden[:N_PAST])
        with pytest.raises(NativeError, match="expected tokens to load"):
            session.load_rows(rows[1][:N_PAST])
