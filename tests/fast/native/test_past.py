"""K/V rows that are loaded in place of tokens that run (Session.set_past): the logits, scores and rows are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest

from asl_gguf.errors import AslError, NativeError, OptionError
from asl_gguf.native import bindings
from asl_gguf.native.session import Session
from harness import F16, F32, KV_NAMES, Q8_0, Context, KVState, Model, Options, assert_same, llama_cpp, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES
from twins import relative_error

N_LAYER = 6
N_TOKENS = 170
TOKENS = prompt(N_TOKENS)
ANSWER = [70, 71, 72]
CHUNKS = {"one": (64, 64), "whole": (72, 24), "uneven": (40, 24), "rest": (72, 64)}
"""n_batch, n_ubatch"""

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0, F32], ids=KV_NAMES.get)


def options_of(chunks: str, flash: bool = False, kv: int = F16) -> Options:
    n_batch, n_ubatch = CHUNKS[chunks]
    return Options(n_batch=n_batch, n_ubatch=n_ubatch, flash=flash, kv=kv)


def run(session: Session, tokens: list[int], past: Sequence[np.ndarray] = (), n_past: int = 0) -> list[np.ndarray]:
    """All layers with all rows kept, the first n_past tokens loaded; returns the rows of each layer."""
    rows = []
    session.begin(tokens, 1)
    if n_past:
        session.set_past(n_past)
    for layer in range(session.info().n_layer):
        if n_past:
            session.load_rows(past[layer][:n_past])
        session.run(1, False)
        session.keep_rows(None)
        rows.append(session.save_rows(0, len(tokens)))
    session.finish()
    return rows


def check_chain(context: Context, stock: Context, lengths: Sequence[int]) -> list[np.ndarray]:
    """Prompts that extend one another against stock decoding what each adds; returns the last one's rows."""
    session, tokens, rows, n_past = context.session(), prompt(lengths[-1]), [], 0
    stock.clear()
    for n_tokens in lengths:
        rows = run(session, tokens[:n_tokens], rows, n_past)
        assert_same([context.logits()], [stock.decode(tokens[n_past:n_tokens])], f"{n_past} and up to {n_tokens}")
        n_past = n_tokens
    assert context.get_state() == stock.get_state()
    assert_same(context.continuation(ANSWER), stock.continuation(ANSWER), "the answer")
    return rows


@pairs(architecture=ARCHITECTURES, flash=[False, True], kv=[F16, Q8_0, F32])
def test_loaded_tokens_are_decoded_tokens(load_tiny, architecture, flash, kv):
    model, options = load_tiny(architecture), options_of("one", flash, kv)
    with model.context(options) as context, model.context(options) as stock:
        check_chain(context, stock, (1, 2, 63, 64, 65, 150))


@with_flash
@pytest.mark.parametrize(
    "chunks, lengths", [("uneven", (23, 25, 41, 80, 150)), ("rest", (71, 72, 73, 137, 210)), ("one", (256, 257, 270))]
)
def test_chunks_begin_anew_where_the_past_ends(load_tiny, chunks, lengths, flash):
    model, options = load_tiny("llama"), options_of(chunks, flash)
    with model.context(options) as context, model.context(options) as stock:
        check_chain(context, stock, lengths)


@with_kv
@with_flash
def test_a_part_of_the_past(load_tiny, flash, kv):
    """Prompts that share less than all that was stored."""
    model, options = load_tiny("llama"), options_of("one", flash, kv)
    with model.context(options) as context, model.context(options) as stock:
        for n_shared, n_new in ((100, 1), (64, 70)):
            rows, tokens = check_chain(context, stock, (64, 140)), prompt(140)[:n_shared] + prompt(n_new, seed=1)
            llama_cpp.llama_memory_seq_rm(stock.memory, 0, n_shared, -1)
            run(context.session(), tokens, rows, n_shared)
            assert_same([context.logits()], [stock.decode(tokens[n_shared:])], f"{n_shared} tokens shared")
            assert_same(context.continuation(ANSWER), stock.continuation(ANSWER), f"{n_shared} tokens shared")


@pytest.mark.parametrize("weight_type", ["F16", "Q8_0"])
def test_expanded_weights(tiny_model, weight_type):
    """Every layer expands its own weights, past or not, and attends to loaded K/V as to those it computes."""
    with closing(Model(tiny_model("llama", weight_type=weight_type), repack=False)) as model:
        with model.context() as context, model.context() as whole:
            session, without_past = context.session(), whole.session()
            for opened in (session, without_past):
                opened.set_dequant("all")
            run(session, TOKENS, run(session, TOKENS[:64]), 64)
            run(without_past, TOKENS)
            assert_same(context.continuation(ANSWER), whole.continuation(ANSWER))


def rows_of_cells(cells: KVState) -> list[np.ndarray]:
    """The cells as `Session.save_rows` has them: each token's K, then its V."""
    n_cells = len(cells.positions)
    layers = zip(cells.keys, cells.values)
    return [np.concatenate([k.reshape(n_cells, -1), v.reshape(n_cells, -1)], axis=1) for k, v in layers]


@with_kv
@with_flash
@pytest.mark.parametrize("head_dim", [32, 64])
def test_rows_are_those_of_the_cache(load_tiny, flash, kv, head_dim):
    """Saved whole and in parts, loaded elsewhere, saved again: the bytes of a stock context."""
    model, tokens, options = load_tiny("llama", head_dim=head_dim), prompt(90), options_of("uneven", flash, kv)
    with model.context(options) as stock, model.context(options) as context, model.context(options) as other:
        stock.prefill(tokens)
        session, loading = context.session(), other.session()
        session.begin(tokens, 1)
        loading.begin(tokens, 1)
        loading.set_past(80)
        for layer, rows in enumerate(rows_of_cells(stock.cells())):
            session.run(1, False)
            assert session.row_bytes(layer) == rows.shape[1]
            for begin, end in ((0, 90), (0, 1), (89, 90), (3, 41), (31, 64)):
                saved = session.save_rows(begin, end)
                assert saved.dtype == np.uint8 and np.array_equal(saved, rows[begin:end]), (layer, begin, end)
            loading.load_rows(np.repeat(rows[:80], 2, axis=0)[::2])  # rows that lie apart
            loading.run(1, False)
            assert np.array_equal(loading.save_rows(0, 80), rows[:80]), layer


@with_kv
@with_flash
def test_scores_and_keys_are_those_of_a_full_run(load_tiny, flash, kv):
    """Bit for bit where the past ends with a chunk; elsewhere chunks differ, and rounding with them."""
    weights, worst = np.linspace(0.5, 2, 26, dtype=np.float32), 0.0
    with load_tiny("llama").context(options_of("whole", flash, kv)) as context:
        session = context.session()
        rows = run(session, TOKENS)
        for window, factors in ((1, None), (26, weights)):
            found = []
            for n_past in (0, 72, 144, 50):
                session.begin(TOKENS, window)
                session.set_past(n_past)
                session.set_window(window, factors)
                found.append(([], []))
                for layer in range(N_LAYER):
                    if n_past:
                        session.load_rows(rows[layer][:n_past])
                    session.run(1, True)
                    found[-1][0].append(session.scores())
                    found[-1][1].append(session.keys())
            for scores, keys in found[1:3]:
                assert all(map(np.array_equal, scores + keys, found[0][0] + found[0][1]))
            worst = max(worst, *map(relative_error, found[3][0], found[0][0]))
    print(f"largest relative error after 50 tokens: {worst:.2e}")
    assert worst < 1e-5


# errors

N_SHORT = 60
N_PAST = 40
SHORT = prompt(N_SHORT)


@pytest.fixture(name="short")
def run_short(load_tiny) -> Iterator[tuple[Session, list[np.ndarray], Callable[[], None]]]:
    """A session, the rows of SHORT, and a check that a prefill of it, just completed, is stock's."""
    with (
        load_tiny("llama").context(options_of("one")) as context,
        load_tiny("llama").context(options_of("one")) as stock,
    ):
        session = context.session()
        stock.prefill(SHORT[:N_PAST])
        stock.decode(SHORT[N_PAST:])
        expected, rows = stock.continuation(ANSWER), run(session, SHORT)
        yield session, rows, lambda: assert_same(context.continuation(ANSWER), expected)


def begin(session: Session, rows: list[np.ndarray], n_layers: int = 0) -> None:
    """Opens a prefill with a past and runs some of its layers."""
    session.begin(SHORT, 8)
    session.set_past(N_PAST)
    complete(session, rows, n_layers)


def complete(session: Session, rows: list[np.ndarray], n_layers: int = N_LAYER) -> None:
    for layer in range(session.info().next_layer, n_layers):
        session.load_rows(rows[layer][:N_PAST])
        session.run(1, False)
        session.keep_rows(None)


def info_of(session: Session) -> list[int]:
    return [getattr(session.info(), name) for name, _ in bindings.session_info._fields_]


Call = Callable[[Session, np.ndarray], object]
ALL = np.arange(N_SHORT, dtype=np.int32)
# what is called once two layers have run, with rows of the third; the error; the message
WRONG_CALLS: dict[str, tuple[Call, type[AslError], str]] = {
    "past-late": (lambda s, r: s.set_past(0), NativeError, "of which no layer has run, layer 2 is next"),
    "rows-few": (lambda s, r: s.load_rows(r[:39]), OptionError, r"expected a buffer of 10240 bytes, got 9984"),
    "rows-many": (lambda s, r: s.load_rows(r[:41]), OptionError, r"expected a buffer of 10240 bytes, got 10496"),
    "rows-type": (lambda s, r: s.load_rows(r[:40].view(np.int8)), OptionError, r"expected uint8 .*, got int8"),
    "rows-flat": (lambda s, r: s.load_rows(r[:40].ravel()), OptionError, r"expected uint8 .*, got uint8 \[10240\]"),
    "run-unloaded": (lambda s, r: s.run(1, False), NativeError, "expected the K/V of the first 40 tokens in layer 2"),
    "run-two": (lambda s, r: s.run(2, False), NativeError, "in layer 2 .*, and that one layer to run"),
    "run-none": (lambda s, r: s.run(0, False), OptionError, "expected 1 to 4 layers, got 0"),
    "tokens": (lambda s, r: s.keep_tokens(ALL), NativeError, "not possible where K/V were loaded: the first 40"),
    "save-layer": (lambda s, r: s.save_layer(), NativeError, "not possible where K/V were loaded: the first 40"),
    "load-layer": (lambda s, r: s.load_layer(2, r[0]), NativeError, "not possible where K/V were loaded"),
    "finish": (lambda s, r: s.finish(), NativeError, "not possible where K/V were loaded: the first 40"),
    "window": (lambda s, r: s.set_window(21), OptionError, "expected a window of 1 to 20 tokens, got 21"),
    "save-before": (lambda s, r: s.save_rows(-1, 3), OptionError, "tokens between 0 and 60, got -1 to 3"),
    "save-beyond": (lambda s, r: s.save_rows(3, 61), OptionError, "tokens between 0 and 60, got 3 to 61"),
    "save-none": (lambda s, r: s.save_rows(5, 5), OptionError, "tokens between 0 and 60, got 5 to 5"),
    "save-back": (lambda s, r: s.save_rows(9, 5), OptionError, "tokens between 0 and 60, got 9 to 5"),
    "layer-before": (lambda s, r: s.row_bytes(-1), OptionError, "expected a layer from 0 to 5, got -1"),
    "layer-beyond": (lambda s, r: s.row_bytes(6), OptionError, "expected a layer from 0 to 5, got 6"),
}


@pytest.mark.parametrize("call, error, message", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_call_leaves_the_prefill_as_it_was(short, call, error, message):
    session, rows, check = short
    begin(session, rows, 2)
    before = info_of(session)
    with pytest.raises(error, match=message):
        call(session, rows[2])
    assert info_of(session) == before
    complete(session, rows)
    session.finish()
    check()


def test_rows_stay_loaded_when_a_run_is_refused(short):
    session, rows, check = short
    begin(session, rows, 2)
    session.load_rows(rows[2][:N_PAST])
    with pytest.raises(NativeError, match="and that one layer to run"):
        session.run(2, False)
    session.run(1, False)
    session.keep_rows(None)
    complete(session, rows)
    session.finish()
    check()


@pytest.mark.parametrize("n_past", [-1, N_SHORT, N_SHORT + 1])
def test_a_past_outside_the_prompt(short, n_past):
    session, rows, check = short
    session.begin(SHORT, 8)
    with pytest.raises(OptionError, match=f"expected 0 to 59 tokens whose K/V are loaded, got {n_past}"):
        session.set_past(n_past)
    with pytest.raises(NativeError, match="no layer has run yet"):
        session.save_rows(0, 1)
    for prepare in (lambda: None, lambda: session.set_past(0)):
        prepare()
        with pytest.raises(NativeError, match=r"expected tokens to load .*, got 0 tokens and layer 0 of 6"):
            session.load_rows(rows[0])
    session.set_past(N_PAST)
    complete(session, rows)
    with pytest.raises(NativeError, match=r"a layer left to run, got 40 tokens and layer 6 of 6"):
        session.load_rows(rows[0][:N_PAST])
    session.finish()
    check()


def test_outside_a_prefill(short):
    session, rows, check = short  # one prefill was completed
    calls: list[Callable[[], object]] = [
        lambda: session.set_past(0),
        lambda: session.row_bytes(0),
        lambda: session.save_rows(0, 1),
        lambda: session.load_rows(rows[0]),
    ]
    for _ in range(2):
        for call in calls:
            with pytest.raises(NativeError, match="no prefill is open; call asl_session_begin first"):
                call()
        begin(session, rows, 3)
        session.abort()
    begin(session, rows, N_LAYER)
    session.finish()
    check()


def test_the_next_prompt_has_no_past(short, load_tiny):
    """Whether the one before was completed, aborted or forgotten."""
    session, rows, check = short
    begin(session, rows, N_LAYER)
    session.finish()
    check()
    for prepare in (lambda: None, lambda: begin(session, rows, 2)):
        prepare()
        assert all(map(np.array_equal, run(session, SHORT), rows))


# faults there were


@pytest.mark.parametrize("read", [lambda s: s.save_rows(0, N_SHORT), lambda s: s.keys()], ids=["rows", "keys"])
def test_loading_ahead_leaves_the_layer_that_ran(short, read):
    """Or says that it is gone; keep_rows would copy the same mixture."""
    session, rows, _ = short
    begin(session, rows, 1)
    expected = read(session)
    session.load_rows(rows[1][:N_PAST])
    try:
        assert np.array_equal(read(session), expected)
    except NativeError:
        pass


def test_another_past_has_nothing_loaded(short):
    session, rows, _ = short
    session.begin(SHORT, 8)
    session.set_past(1)
    session.load_rows(rows[0][:1])
    session.set_past(N_PAST)
    with pytest.raises(NativeError, match="expected the K/V of the first 40 tokens in layer 0"):
        session.run(1, False)


@pytest.mark.parametrize("window", [4, 30])
def test_a_past_leaves_the_window(short, window):
    """And the weights of the queries that are left of it: the last one alone counts here."""
    session, rows, _ = short
    session.begin(SHORT, 8)
    session.set_window(window, np.eye(window, dtype=np.float32)[-1])
    session.set_past(N_PAST)
    session.load_rows(rows[0][:N_PAST])
    session.run(1, True)
    np.testing.assert_allclose(session.scores().sum(axis=1), 2, rtol=1e-5)  # one query of 2 heads each


@pytest.mark.parametrize(
    "call",
    [
        lambda s, r: s.load_rows(np.ascontiguousarray(r[:N_PAST].T)),
        lambda s, r: s.set_past(2**32),
        lambda s, r: s.save_rows(2**32, 2**32 + 5),
        lambda s, r: s.save_rows(0, 2**40),
    ],
    ids=["transposed", "past-2**32", "rows-2**32", "rows-2**40"],
)
def test_numbers_that_do_not_fit(short, call):
    session, rows, _ = short
    begin(session, rows, 0 if "set_past" in call.__code__.co_names else 1)
    with pytest.raises(OptionError):
        call(session, rows[1])
