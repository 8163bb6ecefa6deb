"""What Session.extend and its turn refuse, and that nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import ContextFullError, NativeError, OptionError
from asl_gguf.native.session import Session
from asl_gguf.policies import PyramidInfer
from harness import assert_same, prompt
from sequences import Sequences
from turns import (
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

REFUSED: dict[str, tuple[Callable[[Session], object], type[Exception], str]] = {
    "set_past": (lambda s: s.set_past(3), NativeError, "expected a prefill that asl_session_begin started"),
    "load_rows": (
        lambda s: s.load_rows(np.zeros((1, s.row_bytes(0)), np.uint8)),
        NativeError,
        "asl_session_begin started",
    ),
    "save_layer": (lambda s: s.save_layer(), NativeError, "not possible after asl_session_extend"),
    "load_hidden": (
        lambda s: s.load_hidden(np.zeros((1, s.info().n_hidden), np.float32)),
        NativeError,
        "asl_session_begin",
    ),
    "window": (lambda s: s.set_window(len(TURN) + 1), OptionError, "expected a window of 1 to 100 tokens, got 101"),
    "rows": (lambda s: s.keep_rows(np.arange(20, 152)), OptionError, "expected the 52 tokens of the past to be kept"),
    "few rows": (lambda s: s.keep_rows([151]), OptionError, "expected the 52 tokens of the past to be kept"),
    "rows of one head": (
        lambda s: s.keep_rows([[*range(60), 151], [*range(1, 61), 151]]),
        OptionError,
        "expected the 52 tokens of the past to be kept, before new ones",
    ),
    "tokens": (
        lambda s: s.keep_tokens(np.arange(1, 152)),
        OptionError,
        "expected the 52 tokens of the past to be kept",
    ),
    "finish": (lambda s: s.finish(), NativeError, "expected every layer to keep rows, layer 0 kept none"),
}


@pytest.mark.parametrize("call, error, match", REFUSED.values(), ids=REFUSED)
def test_refused_calls(load_tiny, call, error, match):
    """Change nothing: the turn goes on."""
    with load_tiny("llama").context(OPTIONS) as context, load_tiny("llama").context(OPTIONS) as stock:
        session = give_past(context, POLICIES["selected"])
        give_past(stock, POLICIES["selected"])
        session.extend(TURN, WINDOW)
        session.run(1, True)
        with pytest.raises(error, match=match):
            call(session)
        session.keep_rows(None)
        session.finish()
        assert_same([context.logits()], [stock.decode(TURN)])


def test_uneven_rows_of_a_turn(load_tiny):
    with load_tiny("llama").context(OPTIONS) as context:
        session = give_past(context, POLICIES["selected"])
        session.extend(TURN, WINDOW)
        session.run(1, False)
        session.keep_rows(np.r_[0:60, 151])
        session.run(1, False)
        with pytest.raises(
            OptionError, match="expected 9 rows of new tokens, as in the first layer, got 8: after a past"
        ):
            session.keep_rows(np.r_[0:59, 151])
        session.keep_rows(np.r_[0:60, 151])
        with pytest.raises(OptionError, match="expected 9 rows of new tokens, as in the first layer, got 100"):
            session.finish()


def test_refused_pasts(load_tiny):
    model = load_tiny("llama")
    with model.context(OPTIONS) as context:
        session = context.session(300)
        no_past = pytest.raises(NativeError, match="got an empty one; call asl_session_begin")
        with no_past:
            session.extend(TURN, WINDOW)
        session.begin(TOKENS, WINDOW)
        with no_past:  # the prefill that is open has taken the past
            session.extend(TURN, WINDOW)
        session.finish()
        with pytest.raises(
            OptionError, match=r"expected at most 120 tokens from position 180 on \(n_ctx = 300\), got 121"
        ):
            session.extend(prompt(121), WINDOW)
        with pytest.raises(OptionError, match="expected token ids 0 to"):
            session.extend([-1], WINDOW)
        with pytest.raises(OptionError, match="expected 1 to n_ctx = 300 tokens, got 0"):
            session.extend([], WINDOW)
        with pytest.raises(OptionError, match="expected a window of at least 1 token, got 0"):
            session.extend(TURN, 0)
        session.extend(prompt(120), WINDOW)
        session.finish()
        assert context.cells().positions == list(range(300))
        prefill(session, TOKENS, PyramidInfer(min_context=12), N_KEPT)
        with pytest.raises(NativeError, match="expected a past that keeps equal numbers of rows in every layer, layer"):
            session.extend(TURN, WINDOW)
    with model.context(replace(OPTIONS, n_seq_max=2, unified=True)) as context:
        live = Sequences(context)
        live.decode(0, TOKENS)
        live.decode(1, TURN)
        with pytest.raises(NativeError, match="holds sequence 0 alone, cell 180 is of another sequence"):
            context.session().extend(TURN, WINDOW)


def test_too_few_cells(load_tiny):
    """Found when the first rows are kept; fewer rows go in, and the past is not lost."""
    with load_tiny("llama").context(replace(OPTIONS, n_ctx=256)) as context:
        session = give_past(context, None)
        before = snapshot(context)
        session.extend(TURN, WINDOW)
        with pytest.raises(ContextFullError, match="expected at most 74 rows of new tokens .*, got 100"):
            session.start_finish()
        session.run(1, False)
        with pytest.raises(ContextFullError, match="expected at most 74 rows of new tokens .*, got 100"):
            session.keep_rows(None)
        assert snapshot(context) == before
        session.abort()
        prune_turn(session, TURN, kept_of(len(TURN), 74))
        assert session.info().n_cells_used == 256
