"""Whatever goes wrong in a prefill, the session says so and completes the next prompt as stock does."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import (
    AslError,
    ContextFullError,
    NativeError,
    OptionError,
    PrefillCancelled,
    PromptError,
    UnsupportedModelError,
)
from asl_gguf.native import bindings
from asl_gguf.native.session import Session, unsupported_reason
from asl_gguf.policies import SnapKV, make_policy
from harness import Context, Options, assert_same, llama_cpp, prompt
from prefills import Interrupt
from tiny_gguf import ARCHITECTURES, N_VOCAB, SLIDING, UNPRUNABLE

OPTIONS = Options(n_ctx=256, n_batch=24, n_ubatch=24)
N_CTX = 1024
WINDOW = 8
N_TOKENS = 60
ANSWER = [70, 71]

ALL = np.arange(N_TOKENS, dtype=np.int32)
LAST = N_TOKENS - 1
WEIGHTS = np.ones(7, dtype=np.float32)
LAYER = np.zeros(5, dtype=np.uint8)


@pytest.fixture
def context(load_tiny):
    with load_tiny("llama").context(OPTIONS) as context:
        yield context


@pytest.fixture
def session(context):
    return context.session(N_CTX)


def expected_logits(context: Context, tokens: list[int]) -> list[np.ndarray]:
    with context.model.context(context.options) as stock:
        stock.prefill(tokens)
        return stock.continuation(ANSWER)


def assert_next_prompt_is_stock(context: Context, session: Session) -> None:
    """A whole prompt through the engine, of another length than before."""
    tokens = prompt(N_TOKENS + 11, seed=1)
    prefill(session, tokens, make_policy("none"), len(tokens))
    assert_same(context.continuation(ANSWER), expected_logits(context, tokens), "the prompt after an error")


def begin(session: Session, n_layers: int = 0, *, rows: bool = True) -> None:
    """Opens a prefill and runs some of its layers."""
    session.begin(prompt(N_TOKENS), WINDOW)
    for _ in range(n_layers):
        session.run(1, False)
        if rows:
            session.keep_rows(None)


def complete(session: Session) -> None:
    """Runs what is left with all rows kept."""
    for _ in range(session.info().next_layer, session.info().n_layer):
        session.run(1, False)
        session.keep_rows(None)
    session.finish()


@pytest.mark.parametrize(
    "tokens, window, error, message",
    [
        ([], WINDOW, OptionError, "expected 1 to n_ctx = 1024 tokens, got 0"),
        (prompt(N_CTX + 1), WINDOW, OptionError, "expected 1 to n_ctx = 1024 tokens, got 1025"),
        ([5, -1], WINDOW, OptionError, f"expected token ids 0 to {N_VOCAB - 1}, got -1 at index 1"),
        ([5, 6, N_VOCAB], WINDOW, OptionError, f"expected token ids 0 to {N_VOCAB - 1}, got {N_VOCAB} at index 2"),
        ([5, 6], 0, OptionError, "expected a window of at least 1 token, got 0"),
    ],
    ids=["empty", "too-long", "negative-token", "large-token", "no-window"],
)
def test_begin(context, session, tokens, window, error, message):
    with pytest.raises(error, match=message):
        session.begin(tokens, window)
    assert session.info().n_tokens == 0
    assert_next_prompt_is_stock(context, session)


def test_engine_checks_the_prompt(context, session):
    with pytest.raises(PromptError, match="expected at least one token"):
        prefill(session, [], make_policy("none"), 1)
    with pytest.raises(ContextFullError, match="expected at most 256 tokens to keep"):
        prefill(session, prompt(400), make_policy("none"), 400)
    with pytest.raises(ContextFullError, match="expected at most 256 tokens to keep"):
        prefill(session, prompt(400), SnapKV(), 257)
    with pytest.raises(AslError, match="expected token ids"):
        prefill(session, [5, N_VOCAB], make_policy("none"), 2)
    assert_next_prompt_is_stock(context, session)


# what is called once two layers have run with their rows kept; the message; the error
WRONG_CALLS: dict[str, tuple[Callable[[Session], object], str, type[AslError]]] = {
    "run-none": (lambda s: s.run(0, False), "expected 1 to 4 layers, got 0", OptionError),
    "run-too-many": (lambda s: s.run(5, False), "expected 1 to 4 layers, got 5", OptionError),
    "run-negative": (lambda s: s.run(-1, True), "expected 1 to 4 layers, got -1", OptionError),
    "scores": (lambda s: s.scores(), "has no scores; run it with_scores", NativeError),
    "queries": (lambda s: s.queries(), "has no scores; run it with_scores", NativeError),
    "rows-decreasing": (lambda s: s.keep_rows(ALL[::-1]), "expected increasing token indices", OptionError),
    "rows-duplicate": (lambda s: s.keep_rows(np.sort(np.append(ALL[1:], LAST))), "expected increasing", OptionError),
    "rows-negative": (lambda s: s.keep_rows(ALL - 1), "expected increasing .*, got -1", OptionError),
    "rows-out-of-range": (lambda s: s.keep_rows(ALL + 1), "below 60, got 60", OptionError),
    "rows-per-head": (lambda s: s.keep_rows(np.stack([ALL, ALL + 1])), "below 60, got 60", OptionError),
    "rows-dropped": (lambda s: s.keep_rows(ALL[:-9]), "expected the last token, 59, to be kept", OptionError),
    "rows-none": (lambda s: s.keep_rows(ALL[:0]), "expected", OptionError),
    "rows-shape": (lambda s: s.keep_rows(np.stack([ALL] * 3)), r"expected shape \[k\] or \[2, k\]", OptionError),
    "rows-scalar": (lambda s: s.keep_rows(np.int32(5)), "expected", OptionError),
    "tokens-window": (lambda s: s.keep_tokens(np.delete(ALL, LAST - 3)), "expected the window's 8 tokens", OptionError),
    "tokens-few": (lambda s: s.keep_tokens(ALL[-3:]), "expected the window's 8 tokens", OptionError),
    "tokens-last": (lambda s: s.keep_tokens(ALL[:-1]), "expected the last token, 59, to be kept", OptionError),
    "tokens-decreasing": (lambda s: s.keep_tokens(ALL[::-1]), "expected increasing token indices", OptionError),
    "tokens-none": (lambda s: s.keep_tokens(ALL[:0]), "expected 1 to 60 tokens to keep, got 0", OptionError),
    "tokens-shape": (lambda s: s.keep_tokens(ALL[None]), r"expected a 1-dimensional array", OptionError),
    "window-none": (lambda s: s.set_window(0), "expected a window of 1 to 60 tokens, got 0", OptionError),
    "window-long": (lambda s: s.set_window(61), "expected a window of 1 to 60 tokens, got 61", OptionError),
    "weights": (lambda s: s.set_window(8, WEIGHTS), r"weights: expected shape \[8\], got \[7\]", OptionError),
    "weights-2d": (lambda s: s.set_window(7, WEIGHTS[None]), r"expected shape \[7\], got \[1, 7\]", OptionError),
    "load-size": (lambda s: s.load_layer(2, LAYER), r"expected a buffer of \d+ bytes, got 5", OptionError),
    "load-words": (lambda s: s.load_layer(2, WEIGHTS), r"saved: expected bytes .*, got float32 \[7\]", OptionError),
    "load-beyond": (lambda s: s.load_layer(6, LAYER), "expected a layer from 0 to 5, got 6", OptionError),
    "load-negative": (lambda s: s.load_layer(-1, LAYER), "expected a layer from 0 to 5, got -1", OptionError),
    "load-ran": (lambda s: s.load_layer(1, s.save_layer()), "expected a layer that has not run", NativeError),
    "dequant": (
        lambda s: s.set_dequant("some"),
        "expected one of off, auto, all, int8, int16, got 'some'",
        OptionError,
    ),
}


@pytest.mark.parametrize("call, message, error", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_call_leaves_the_prefill_as_it_was(context, session, call, message, error):
    begin(session, 2)
    before = [getattr(session.info(), name) for name, _ in bindings.session_info._fields_]
    with pytest.raises(error, match=message):
        call(session)
    assert [getattr(session.info(), name) for name, _ in bindings.session_info._fields_] == before
    complete(session)
    assert_same(context.continuation(ANSWER), expected_logits(context, prompt(N_TOKENS)), "the prompt with the error")
    assert_next_prompt_is_stock(context, session)


def test_last_token_missing_from_rows(context, session):
    begin(session, 1, rows=False)
    for rows in (ALL[:-1], np.stack([ALL[1:], ALL[:-1]])):
        with pytest.raises(OptionError, match="expected the last token, 59, to be kept"):
            session.keep_rows(rows)
    assert_next_prompt_is_stock(context, session)


def test_more_rows_than_cells(context, session):
    session.begin(prompt(300), WINDOW)
    session.run(1, False)
    with pytest.raises(OptionError, match=r"expected at most 256 rows \(cells of the decode context\), got 300"):
        session.keep_rows(None)
    with pytest.raises(OptionError, match=r"expected at most 256 rows .*, got 257"):
        session.keep_rows(np.arange(43, 300))
    session.keep_rows(np.arange(44, 300))
    session.abort()
    session.begin(prompt(300), WINDOW)
    with pytest.raises(OptionError, match=r"expected at most 256 tokens \(cells of the decode context\), got 300"):
        session.finish()
    assert_next_prompt_is_stock(context, session)


def test_finish_without_rows(context, session):
    begin(session, 2)
    session.run(1, False)
    with pytest.raises(NativeError, match="expected every layer to keep rows, layer 2 kept none"):
        session.finish()
    session.keep_rows(None)
    complete(session)
    assert_same(context.continuation(ANSWER), expected_logits(context, prompt(N_TOKENS)))

    begin(session, 6, rows=False)
    with pytest.raises(NativeError, match="expected every layer to keep rows, layer 0 kept none"):
        session.finish()
    assert_next_prompt_is_stock(context, session)


def test_finish_with_more_tokens_than_rows_of_the_first_layer(context, session):
    """Fewer are allowed (test_uneven_rows.py); more would need cells that the prompt does not have."""
    begin(session, 1, rows=False)
    session.keep_rows(ALL[20:])
    message = "expected at most 40 current tokens, as many as the first layer kept rows, got"
    with pytest.raises(NativeError, match=f"{message} 60"):
        session.finish()
    session.keep_tokens(ALL[19:])
    with pytest.raises(NativeError, match=f"{message} 41"):
        session.finish()
    assert_next_prompt_is_stock(context, session)


def test_no_token_can_be_dropped_after_the_last_layer(context, session):
    begin(session, 6)
    with pytest.raises(NativeError, match="all layers have run"):
        session.keep_tokens(ALL)
    with pytest.raises(OptionError, match="layers, got 1"):
        session.run(1, False)
    complete(session)
    assert_same(context.continuation(ANSWER), expected_logits(context, prompt(N_TOKENS)))


CALLS: dict[str, Callable[[Session], object]] = {
    "run": lambda s: s.run(1, False),
    "scores": lambda s: s.scores(),
    "queries": lambda s: s.queries(),
    "keys": lambda s: s.keys(),
    "rows": lambda s: s.keep_rows(ALL),
    "all-rows": lambda s: s.keep_rows(None),
    "tokens": lambda s: s.keep_tokens(ALL),
    "finish": lambda s: s.finish(),
    "window": lambda s: s.set_window(WINDOW),
    "save": lambda s: s.save_layer(),
    "load": lambda s: s.load_layer(0, LAYER),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_outside_a_prefill(context, session, call):
    def aborted() -> None:
        begin(session, 1)
        session.abort()

    def finished() -> None:
        begin(session)
        session.finish()

    for prepare in (lambda: None, aborted, finished):
        prepare()
        with pytest.raises(NativeError, match="no prefill is open; call asl_session_begin first"):
            call(session)
    session.abort()  # without a prefill: nothing
    assert_next_prompt_is_stock(context, session)


@pytest.mark.parametrize("name", ["scores", "queries", "keys", "rows", "all-rows", "tokens"])
def test_calls_before_the_first_layer(context, session, name):
    begin(session)
    with pytest.raises(NativeError, match="no layer has run yet; call asl_session_run first"):
        CALLS[name](session)
    complete(session)
    assert_same(context.continuation(ANSWER), expected_logits(context, prompt(N_TOKENS)))


def test_abort_and_begin_forget_an_open_prefill(context, session):
    begin(session, 3)
    session.abort()
    assert session.info().n_cells_used == session.info().kv_bytes_prefill == session.info().host_bytes == 0
    assert_next_prompt_is_stock(context, session)
    begin(session, 3)
    assert_next_prompt_is_stock(context, session)


@pytest.mark.parametrize("at", [1, 2, 3, 10, 18], ids="chunk {}".format)
@pytest.mark.parametrize(
    "answer, error",
    [(False, PrefillCancelled), (KeyboardInterrupt("now"), KeyboardInterrupt), (ValueError("mine"), ValueError)],
    ids=["False", "KeyboardInterrupt", "ValueError"],
)
def test_progress_cancels(context, session, answer, error, at):
    """60 tokens in chunks of 24, 6 layers: 18 calls."""
    callback = Interrupt(at, answer)
    session.set_progress(callback)
    with pytest.raises(error):
        prefill(session, prompt(N_TOKENS), make_policy("none"), N_TOKENS)
    assert len(callback.calls) == at
    assert session.info().n_tokens == session.info().n_cells_used == session.info().kv_bytes_prefill == 0
    session.set_progress(None)
    assert_next_prompt_is_stock(context, session)


@pytest.mark.parametrize("at", [7, 8, 9])
def test_progress_cancels_inside_finish(context, session, at):
    callback = Interrupt(at, KeyboardInterrupt())
    session.set_progress(callback)
    begin(session, 2)
    with pytest.raises(KeyboardInterrupt):
        session.finish()
    assert session.info().n_tokens == session.info().n_cells_used == 0
    session.set_progress(None)
    assert_next_prompt_is_stock(context, session)


def test_progress_counts_token_layers(context, session):
    callback = Interrupt(0, True)
    session.set_progress(callback)
    begin(session, 3, rows=False)
    session.keep_rows(ALL[40:])
    session.begin(prompt(N_TOKENS), WINDOW)
    callback.calls.clear()
    for _ in range(3):
        session.run(1, False)
        session.keep_rows(ALL[40:])
    session.keep_tokens(ALL[40:])
    session.finish()
    done = [done for done, _ in callback.calls]
    assert done == sorted(done) and done[:3] == [24, 48, 60]
    assert callback.calls[0][1] == 6 * N_TOKENS
    assert callback.calls[-1] == (3 * N_TOKENS + 3 * 20, 3 * N_TOKENS + 3 * 20)


def test_policy_that_raises(context, session):
    class Broken(SnapKV):
        def needs_scores(self, layer: int, n_layer: int) -> bool:
            if layer == 2:
                raise RuntimeError("a bug of the policy")
            return True

    with pytest.raises(RuntimeError, match="a bug of the policy"):
        prefill(session, prompt(N_TOKENS), Broken(window=WINDOW), 30)
    assert session.info().n_tokens == 0
    assert_next_prompt_is_stock(context, session)


def test_abort_callback_of_the_context(context, session):
    """llama_set_abort_callback of the decode context; stock llama.cpp answers 2 then."""
    stop = llama_cpp.ggml_abort_callback(lambda _: True)
    never = ctypes.cast(None, llama_cpp.ggml_abort_callback)
    llama_cpp.llama_set_abort_callback(context.handle, stop, None)
    begin(session)
    with pytest.raises(PrefillCancelled):
        session.finish()
    llama_cpp.llama_set_abort_callback(context.handle, never, None)
    assert_next_prompt_is_stock(context, session)


@pytest.mark.parametrize("architecture", UNPRUNABLE)
def test_unsupported_model(load_tiny, architecture):
    model = load_tiny(architecture)
    reason = unsupported_reason(model.handle)
    assert reason is not None and "recurrent" in reason
    with model.context(OPTIONS) as context:
        with pytest.raises(UnsupportedModelError, match=reason):
            context.session()
        assert np.isfinite(context.prefill(prompt(30))).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES + SLIDING)
def test_supported_model(load_tiny, architecture):
    assert unsupported_reason(load_tiny(architecture).handle) is None


def test_unsupported_context(load_tiny):
    with load_tiny("llama").context(Options(n_seq_max=2)) as context:
        with pytest.raises(UnsupportedModelError, match="n_seq_max = 1 or kv_unified"):
            context.session()


def test_closing_twice_and_without_reference(context):
    session = context.session()
    begin(session, 2)
    session.close()
    session.close()
    session = Session(context.handle, context.params, N_CTX)
    begin(session, 2)
    del session
    gc.collect()
    assert_next_prompt_is_stock(context, context.session(N_CTX))
