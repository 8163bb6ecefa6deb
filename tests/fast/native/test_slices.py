"""A prefill in slices: byte for byte what it is in one call, whatever decodes in between, and cancelled in any slice."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from asl_gguf.errors import NativeError, OptionError, PrefillCancelled
from asl_gguf.native.session import Session
from harness import F16, KV_NAMES, Q8_0, Context, Options, assert_same, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES, SLIDING

OPTIONS = Options(n_ctx=256, n_batch=40, n_ubatch=24)
WINDOW = 8
N_TOKENS = 130
TOKENS = prompt(N_TOKENS)
CHUNKS_OF_ALL = 7  # 24 and 16 tokens of every 40
KEPT = np.sort(np.random.default_rng(1).choice(N_TOKENS - WINDOW, 40, replace=False))
KEPT = np.concatenate([KEPT, np.arange(N_TOKENS - WINDOW, N_TOKENS)]).astype(np.int32)
ANSWER = [70, 71, 72]

Run = Callable[[Session], Iterator[None]]


def slices(session: Session) -> Iterator[None]:
    """All slices of what was started."""
    while session.step():
        yield
    yield


def run_layers(session: Session, n_layers: int, with_scores: bool, sliced: bool) -> Iterator[None]:
    if not sliced:
        session.run(n_layers, with_scores)
        return
    session.start(n_layers, with_scores)
    yield from slices(session)


def finish(session: Session, sliced: bool) -> Iterator[None]:
    if not sliced:
        session.finish()
        return
    session.start_finish()
    yield from slices(session)


def whole(session: Session, sliced: bool) -> Iterator[None]:
    """Nothing pruned, nobody asked: every layer runs in finish."""
    session.begin(TOKENS, WINDOW)
    yield from finish(session, sliced)


def selects(session: Session, sliced: bool) -> Iterator[None]:
    """Rows of two full layers, then fewer tokens; layers that nobody asks about run together."""
    session.begin(TOKENS, WINDOW)
    full = [layer for layer, slides in enumerate(session.sliding) if not slides]
    for layer in full[:2]:
        yield from run_layers(session, layer + 1 - session.info().next_layer, True, sliced)
        assert session.scores().shape[1] == N_TOKENS
        session.keep_rows(KEPT)
    session.keep_tokens(KEPT)
    yield from finish(session, sliced)


def uneven(session: Session, sliced: bool) -> Iterator[None]:
    """Fewer rows in every deeper layer."""
    session.begin(TOKENS, WINDOW)
    for layer in range(session.info().n_layer):
        yield from run_layers(session, 1, layer % 2 == 0, sliced)
        if not session.sliding[layer]:
            session.keep_rows(KEPT[layer * 2 :])
    yield from finish(session, sliced)


RUNS = {"whole": whole, "selects": selects, "uneven": uneven}
with_runs = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])


def outcome(
    context: Context, run: Run, sliced: bool, between: Callable[[], object] = lambda: None
) -> dict[str, object]:
    """State, logits and those of an answer after a prefill."""
    for _ in run(context.session(), sliced):
        between()
    return {"state": context.get_state(), "logits": np.array(context.continuation(ANSWER))}


def assert_equal(found: dict[str, object], expected: dict[str, object]) -> None:
    assert found["state"] == expected["state"]
    assert_same(found["logits"], expected["logits"])


@pairs(architecture=["llama", "llama-moe", "gemma3", "gpt-oss"], run=RUNS.values(), flash=[False, True])
def test_slices_change_nothing(load_tiny, architecture, run, flash):
    """K/V rows and logits, with another context that decodes between any two slices and is not disturbed either."""
    model = load_tiny(architecture)
    options = Options(**{**vars(OPTIONS), "flash": flash})
    with model.context(options) as context, model.context(options) as other, model.context(options) as alone:
        expected = outcome(context, run, sliced=False)
        heard: list[np.ndarray] = []
        speech = itertools.cycle(prompt(97))
        found = outcome(context, run, True, lambda: heard.append(other.decode([next(speech)])))
        assert_equal(found, expected)
        assert len(heard) >= CHUNKS_OF_ALL * model.n_layer / 2 and len(heard) < 200
        speech = itertools.cycle(prompt(97))
        assert_same(heard, [alone.decode([next(speech)]) for _ in heard])


@pytest.mark.parametrize("kv", [F16, Q8_0], ids=KV_NAMES.get)
@pytest.mark.parametrize("architecture", ARCHITECTURES + SLIDING)
def test_a_sliced_prompt_is_stock(load_tiny, architecture, kv):
    """Bit for bit, if nothing is pruned."""
    options = Options(n_ctx=256, n_batch=40, n_ubatch=24, kv=kv, flash=kv == Q8_0)
    with load_tiny(architecture).context(options) as context, load_tiny(architecture).context(options) as stock:
        stock.prefill(TOKENS)
        for _ in whole(context.session(), True):
            pass
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


def test_two_prefills_interleaved(load_tiny):
    """Slice by slice over one model."""
    with load_tiny("llama").context(OPTIONS) as a, load_tiny("llama").context(OPTIONS) as b:
        alone = [outcome(a, selects, False), outcome(b, uneven, False)]
        runs = selects(a.session(), True), uneven(b.session(), True)
        for _ in itertools.zip_longest(*runs):
            pass
        for context, expected in zip((a, b), alone, strict=True):
            assert_equal({"state": context.get_state(), "logits": np.array(context.continuation(ANSWER))}, expected)


def test_one_chunk_of_one_layer_a_slice(load_tiny):
    """Told by the progress callback: it is called once a slice, but for the head."""
    calls: list[int] = []
    with load_tiny("llama").context(OPTIONS) as context:
        session = context.session()
        session.set_progress(lambda done, _: calls.append(done))
        n_slices = sum(1 for _ in selects(session, True))
        layers = np.array([N_TOKENS] * 2 + [KEPT.size] * (context.model.n_layer - 2))
    assert len(calls) == n_slices - 1 and np.diff([0, *calls]).max() == 24
    assert set(np.cumsum(layers)) <= set(calls)


@pytest.mark.long
@with_runs
def test_cancel_in_every_slice(load_tiny, run):
    """By abort between slices, and by the progress callback in the slice: the next prompt is not disturbed."""
    with load_tiny("llama").context(OPTIONS) as context:
        session = context.session()
        expected = outcome(context, run, sliced=False)
        n_slices = sum(1 for _ in run(session, True))
        for at in range(n_slices):
            for _ in itertools.islice(run(session, True), at + 1):
                pass
            if at < n_slices - 1:
                session.abort()
                assert session.info().n_tokens == session.info().kv_bytes_prefill == session.info().n_cells_used == 0
        for at in range(1, n_slices):
            calls = itertools.count(1)
            session.set_progress(lambda *_, at=at, calls=calls: next(calls) < at)
            with pytest.raises(PrefillCancelled):
                for _ in run(session, True):
                    pass
            assert session.info().n_tokens == session.info().n_cells_used == 0
        session.set_progress(None)
        assert_equal(outcome(context, run, sliced=True), expected)


CALLS = {
    "run": lambda s: s.run(1, False),
    "start": lambda s: s.start(1, False),
    "start_finish": lambda s: s.start_finish(),
    "finish": lambda s: s.finish(),
    "set_window": lambda s: s.set_window(4),
    "set_past": lambda s: s.set_past(10),
    "scores": lambda s: s.scores(),
    "queries": lambda s: s.queries(),
    "keys": lambda s: s.keys(),
    "keep_rows": lambda s: s.keep_rows(KEPT),
    "keep_tokens": lambda s: s.keep_tokens(KEPT),
    "save_layer": lambda s: s.save_layer(),
    "save_rows": lambda s: s.save_rows(0, 10),
    "save_hidden": lambda s: s.save_hidden(0, 10),
    "load_hidden": lambda s: s.load_hidden(np.zeros((10, s.info().n_hidden), np.float32)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_other_calls_in_the_middle_of_a_run(load_tiny, call):
    """Are refused, and the run goes on as if nothing had happened."""
    with load_tiny("llama").context(OPTIONS) as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        session.run(2, True)
        expected = session.scores(), session.queries(), session.keys()
        session.begin(TOKENS, WINDOW)
        session.start(2, True)
        for _ in range(2 * CHUNKS_OF_ALL - 1):
            assert session.step()
            with pytest.raises(NativeError, match="a run is under way; call asl_session_step until no slice is left"):
                call(session)
        assert not session.step()
        for found, values in zip((session.scores(), session.queries(), session.keys()), expected, strict=True):
            assert np.array_equal(found, values)


def test_step_without_a_run(load_tiny):
    with load_tiny("llama").context(OPTIONS) as context:
        session = context.session()
        refused = pytest.raises(NativeError, match="no slice is left to run; call asl_session_start")
        with refused:
            session.step()
        session.begin(TOKENS, WINDOW)
        with refused:
            session.step()
        session.run(1, False)
        with refused:
            session.step()
        with pytest.raises(OptionError, match="expected 1 to 5 layers, got 6"):
            session.start(6, False)
        with pytest.raises(NativeError, match="expected every layer to keep rows, layer 0 kept none"):
            session.start_finish()
        session.keep_rows(None)
        session.start_finish()
        session.begin(TOKENS, WINDOW)  # aborts
        session.finish()
        assert context.cells().positions == list(range(N_TOKENS))


def test_finish_into_too_few_cells(load_tiny):
    """Is refused before anything runs."""
    with load_tiny("llama").context(Options(n_ctx=256)) as context:
        session = context.session(1024)
        session.begin(prompt(300), WINDOW)
        with pytest.raises(OptionError, match="expected at most 256 tokens"):
            session.start_finish()
        session.run(1, False)
        assert session.info().next_layer == 1


@pytest.mark.parametrize("sliced", [False, True], ids=["finish", "step"])
@pytest.mark.parametrize("with_progress", [False, True])
def test_ctrl_c(load_tiny, request, sliced, with_progress):
    """Reaches its handler as KeyboardInterrupt, while layers above the selection run too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with load_tiny("llama").context(OPTIONS) as context:
        session = context.session()
        stop = iter([False] * 5 + [True] + [False] * 100)

        def interrupt() -> None:
            if next(stop):
                os.kill(os.getpid(), signal.SIGINT)

        if with_progress:
            session.set_progress(lambda *_: interrupt())
        else:
            hook_native_progress(session, interrupt)
        session.begin(TOKENS, WINDOW)
        with pytest.raises(KeyboardInterrupt):
            for _ in finish(session, sliced):
                pass
        session.abort()
        session.set_progress(None)
        expected = outcome(context, whole, sliced=False)
        assert_equal(outcome(context, whole, sliced=True), expected)


def hook_native_progress(session: Session, interrupt: Callable[[], None]) -> None:
    """The signal arrives in native code, before Python's callback begins."""
    from asl_gguf.native import bindings

    inner = session._progress

    def outer(data: int, done: int, total: int) -> bool:
        interrupt()
        return inner(data, done, total)

    session._outer = bindings.progress_callback(outer)
    assert bindings.lib.session_set_progress(session._pointer, session._outer, None) == 0
