"""Layers that keep different numbers of rows: what decoding then computes, and that nothing else is left of them."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import gguf
import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import OptionError
from asl_gguf.native.bindings import lib
from asl_gguf.policies import ASL, FastKV, Policy, PyramidInfer, ranking
from harness import F16, F32, KV_NAMES, Q8_0, Context, KVState, Options, assert_same, llama_cpp, prompt
from tiny_numpy import NumpyLlama
from twins import assert_rows, random_index

N_TOKENS = 150
N_KEPT = 40
N_LAYER, N_HEAD_KV = 6, 2
WINDOW = 8
ANSWER = [70, 71, 72]
COUNTS = [70, 70, 50, 31, 31, 12]
"""rows of each layer where a test chooses them itself"""

OPTIONS = {
    f"{'flash' if flash else 'plain'}-{KV_NAMES[kv]}": Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv)
    for flash, kv in ((False, F32), (False, F16), (True, F16), (False, Q8_0), (True, Q8_0))
}
TOLERANCE = {"plain-f32": 1e-4, "plain-f16": 1e-2, "flash-f16": 3e-2, "plain-q8_0": 0.2, "flash-q8_0": 0.2}
POLICIES: dict[str, Policy] = {
    "fastkv": FastKV(window=WINDOW, tsp_layer=2, cache_k="all"),
    "asl": ASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2, cache_k=100),
    "pyramidinfer": PyramidInfer(min_context=12),
}
ROWS = {"fastkv": (150,) * 3 + (40,) * 3, "asl": (100,) * 3 + (40,) * 3}

with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
with_some_options = pytest.mark.parametrize(
    "options", [OPTIONS["plain-f16"], OPTIONS["flash-q8_0"]], ids=["plain", "flash"]
)
with_policy = pytest.mark.parametrize("name", POLICIES)


def prune(context: Context, name: str, n_tokens: int = N_TOKENS) -> tuple[int, ...]:
    """Rows of each layer."""
    report = prefill(context.session(n_ctx=512), prompt(n_tokens), POLICIES[name], N_KEPT)
    assert report.pruned and len(set(report.rows_by_layer)) > 1
    return report.rows_by_layer


def keep_counts(context: Context, tokens: list[int], indices: list[np.ndarray]) -> None:
    session = context.session(n_ctx=512)
    session.begin(tokens, WINDOW)
    for index in indices:
        session.run(1, False)
        assert session.keep_rows(index) == index.shape[-1]
    session.finish()


def random_indices(counts: list[int], seed: int = 0) -> list[np.ndarray]:
    """Per layer int32 [n_head_kv, count]."""
    rng = np.random.default_rng(seed)
    return [random_index(rng, N_TOKENS, count, N_HEAD_KV) for count in counts]


def first_cells(context: Context) -> list[int]:
    first = (ctypes.c_int32 * N_LAYER)()
    assert lib.context_get_first_cells(context.handle, first)
    return list(first)


def set_first_cells(context: Context, first: list[int]) -> bool:
    return lib.context_set_first_cells(context.handle, (ctypes.c_int32 * N_LAYER)(*first))


def to_floats(rows: np.ndarray, kv: int) -> np.ndarray:
    """float32 [n, n_head_kv, d] of a cache's bytes."""
    if kv == Q8_0:
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    return rows.view(np.float32 if kv == F32 else np.float16).astype(np.float32)


@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_equals_attention_in_numpy(load_tiny, tiny_model, name):
    """Each layer over its own rows and no others. Errors are llama.cpp's, which rounds queries to the cache's type."""
    model, options, tokens, indices = load_tiny("llama"), OPTIONS[name], prompt(N_TOKENS), random_indices(COUNTS)
    twin = NumpyLlama(tiny_model("llama"))
    with model.context(options) as stock, model.context(options) as context:
        expected = stock.prefill(tokens)
        full = stock.cells()
        keep_counts(context, tokens, indices)
        assert np.array_equal(context.logits(), expected), "the prompt's last token saw all rows"
        assert first_cells(context) == [max(COUNTS) - count for count in COUNTS]
        held = context.cells()
        last = [[rows[-index.shape[-1] :] for rows, index in zip(part, indices)] for part in (held.keys, held.values)]
        assert_rows(KVState([], *last), full, indices)

        type_v = F16 if options.kv == Q8_0 and not options.flash else options.kv
        keys, values = (
            [to_floats(ranking.gather_rows(rows, index), kv) for rows, index in zip(part, indices, strict=True)]
            for part, kv in ((full.keys, options.kv), (full.values, type_v))
        )
        one_less = twin.decode(ANSWER[0], N_TOKENS, [rows[1:] for rows in keys], [rows[1:] for rows in values])[0]
        errors = []
        for step, token in enumerate(ANSWER):
            logits, keys, values = twin.decode(token, N_TOKENS + step, keys, values)
            errors.append(float(np.abs(context.decode([token]) - logits).max()))
            if step == 0:
                noticed = float(np.abs(context.logits() - one_less).max())
    print("largest errors", errors, "and with a row less", noticed)
    assert max(errors) < TOLERANCE[name] < noticed


@with_options
@pytest.mark.parametrize(
    "policy",
    [
        ASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2, cache_k="all"),
        ASL(window=WINDOW, tau=0, cache_k="all"),
        *(FastKV(window=WINDOW, tsp_layer=layer, cache_k="all") for layer in (0, 2, N_LAYER - 1)),
        FastKV(window=WINDOW, tsp_layer=3),
    ],
    ids=["asl", "asl-never", "fastkv-0", "fastkv-2", "fastkv-last", "fastkv-select_k"],
)
def test_a_policy_that_keeps_all_is_stock(load_tiny, policy, options):
    """Bit for bit, with all tokens "selected" at one layer."""
    model, tokens = load_tiny("llama"), prompt(N_TOKENS)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(tokens)
        report = prefill(context.session(), tokens, policy, N_TOKENS, always_ask=True)
        assert report.rows_by_layer == (N_TOKENS,) * N_LAYER and not report.pruned
        assert len(report.attention_mass_by_layer) > 0, "the policy was not asked"
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))
        assert context.get_state() == stock.get_state()


@with_options
def test_layers_above_the_selection_are_whole(load_tiny, options):
    """FastKV with cache_k="all": their cells are those of a full prefill, the deeper ones hold the selected tokens."""
    model, tokens = load_tiny("llama"), prompt(N_TOKENS)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(tokens)
        report = prefill(context.session(), tokens, POLICIES["fastkv"], N_KEPT)
        full, held = stock.cells(), context.cells()
    everything, selected = np.arange(N_TOKENS), np.array(report.selected)
    assert held.positions == full.positions and selected.size == N_KEPT
    assert_rows(held, full, [everything] * 3)
    # layer 3 still computes K and V from states that know nothing of the dropping
    assert_rows(
        KVState([], [held.keys[3][-N_KEPT:]], [held.values[3][-N_KEPT:]]),
        KVState([], full.keys[3:4], full.values[3:4]),
        [selected],
    )


@with_policy
def test_report(load_tiny, name):
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as context:
        session = context.session(n_ctx=512)
        report = prefill(session, prompt(N_TOKENS), POLICIES[name], N_KEPT)
        info, rows = session.info(), report.rows_by_layer
        assert rows == ROWS.get(name, rows) and list(rows) == sorted(rows, reverse=True)
        assert report.kept_tokens == rows[0] == info.n_cells_used and report.budget_tokens == N_KEPT
        assert first_cells(context) == [rows[0] - n_rows for n_rows in rows]
        assert report.kv_bytes_prompt * N_LAYER == sum(rows) * info.kv_bytes_cell
        assert report.kv_bytes_prompt_full == N_TOKENS * info.kv_bytes_cell
        assert len(report.selected) == rows[-1] and report.selected[-1] == N_TOKENS - 1 and report.passes == 1
        if name == "pyramidinfer":
            assert 0.95 * N_KEPT * N_LAYER < sum(rows) <= N_KEPT * N_LAYER


@with_some_options
@with_policy
def test_stale_cells_are_never_read(load_tiny, name, options):
    """Whatever the context held before: logits are those of a fresh one."""
    model = load_tiny("llama")
    with model.context(options) as context, model.context(options) as fresh:
        context.prefill(prompt(240, seed=3))
        prune(context, name, n_tokens=240)
        context.decode(ANSWER)
        assert prune(context, name) == prune(fresh, name)
        assert_same(context.continuation(ANSWER), fresh.continuation(ANSWER))
        # a chunk of several tokens, and what follows it
        assert np.array_equal(context.decode(prompt(30)), fresh.decode(prompt(30)))


@with_some_options
@with_policy
def test_a_tail_is_removed_and_decoded_again(load_tiny, name, options):
    with load_tiny("llama").context(options) as context:
        prune(context, name)
        first = [context.decode([token]) for token in ANSWER]
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, N_TOKENS, -1)
        assert_same([context.decode([token]) for token in ANSWER], first, "after seq_rm")


@with_policy
def test_stock_prefill_after_an_uneven_one(load_tiny, name):
    model = load_tiny("llama")
    for data in (True, False):
        with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as stock:
            prune(context, name)
            llama_cpp.llama_memory_clear(context.memory, data)
            assert first_cells(context) == [0] * N_LAYER
            tokens = prompt(100, seed=2)
            assert np.array_equal(context.decode(tokens), stock.prefill(tokens))
            assert context.greedy(5) == stock.greedy(5)


def test_an_even_prefill_after_an_uneven_one(load_tiny):
    model, tokens = load_tiny("llama"), prompt(100, seed=2)
    with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as fresh:
        prune(context, "pyramidinfer")
        context.decode(ANSWER)
        for each in (context, fresh):
            prefill(each.session(), tokens, FastKV(window=WINDOW, tsp_layer=2), N_KEPT)
            assert first_cells(each) == [0] * N_LAYER
        assert_same(context.continuation(ANSWER), fresh.continuation(ANSWER))


@with_options
def test_state_moves_to_another_context(load_tiny, options):
    """llama.cpp's state says nothing of the first cells; whoever moves it sets them."""
    model = load_tiny("llama")
    with model.context(options) as context, model.context(options) as other:
        prune(context, "fastkv")
        state, first = context.get_state(), first_cells(context)
        expected = [context.decode([token]) for token in ANSWER]
        other.set_state(state)
        assert set_first_cells(other, first) and first_cells(other) == first
        assert_same([other.decode([token]) for token in ANSWER], expected)


def test_first_cells_out_of_range(load_tiny):
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as context:
        for wrong in ([0, 0, -1, 0, 0, 0], [0, 0, 0, 0, 0, 256]):
            assert not set_first_cells(context, wrong)
            assert first_cells(context) == [0] * N_LAYER
        assert set_first_cells(context, [255, 0, 0, 0, 0, 0]) and first_cells(context)[0] == 255
        context.clear()
        assert first_cells(context) == [0] * N_LAYER
    with load_tiny("mamba").context(OPTIONS["plain-f16"]) as context:
        assert not lib.context_get_first_cells(context.handle, (ctypes.c_int32 * 64)())
        assert not lib.context_set_first_cells(context.handle, (ctypes.c_int32 * 64)())


def test_no_layer_keeps_more_rows_than_the_first(load_tiny):
    """It is told so, and goes on: with fewer rows, then as many as the first again."""
    model, tokens, indices = load_tiny("llama"), prompt(N_TOKENS), random_indices([50, 20, 50, 50, 50, 1])
    with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as other:
        session = context.session(n_ctx=512)
        session.begin(tokens, WINDOW)
        for index in indices:
            session.run(1, False)
            if session.info().next_layer > 1:
                with pytest.raises(OptionError, match="expected at most 50 rows, as in the first layer, got 51"):
                    session.keep_rows(np.arange(N_TOKENS - 51, N_TOKENS))
                with pytest.raises(OptionError, match="expected at most 50 rows, as in the first layer, got 150"):
                    session.keep_rows(None)
            session.keep_rows(index)
        session.finish()
        keep_counts(other, tokens, indices)
        assert first_cells(context) == first_cells(other) == [0, 30, 0, 0, 0, 49]
        assert_same(context.continuation(ANSWER), other.continuation(ANSWER))


def test_fewer_tokens_than_rows(load_tiny):
    """finish() runs what remains layer by layer: as by hand."""
    tokens, kept = prompt(N_TOKENS), np.arange(N_TOKENS - 20, N_TOKENS)
    results = []
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as context:
        session = context.session(n_ctx=512)
        for by_hand in (0, 1, 3):
            session.begin(tokens, WINDOW)
            for index in random_indices([60, 60, 60]):
                session.run(1, False)
                session.keep_rows(index)
            session.keep_tokens(kept)
            for _ in range(by_hand):
                session.run(1, False)
                session.keep_rows(None)
            session.finish()
            assert first_cells(context) == [0] * 3 + [40] * 3
            results.append(context.continuation(ANSWER))
    for result in results[1:]:
        assert_same(result, results[0])


def test_copies_in_other_sequences(load_tiny):
    options = replace(OPTIONS["plain-f32"], n_seq_max=2, unified=True)
    with load_tiny("llama").context(options) as context:
        prune(context, "fastkv")
        expected = context.decode(ANSWER[:1])
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, N_TOKENS, -1)
        llama_cpp.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, -1, -1)
        llama_cpp.llama_memory_seq_cp(context.memory, 1, 0, -1, -1)
        assert np.array_equal(context.decode(ANSWER[:1]), expected)


def test_stock_tokens_one_by_one_after_an_uneven_prompt(load_tiny):
    """llama.cpp uses the graph of the last single token again, which the cleared first cells are not part of."""
    model = load_tiny("llama")
    with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as stock:
        prune(context, "fastkv")
        context.decode(ANSWER[:1])
        context.clear()
        assert_same([context.decode([token]) for token in ANSWER], [stock.decode([token]) for token in ANSWER])


def test_state_moves_to_a_context_that_was_decoding(load_tiny):
    model = load_tiny("llama")
    with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as other:
        prune(context, "fastkv")
        state, first = context.get_state(), first_cells(context)
        expected = [context.decode([token]) for token in ANSWER]
        other.prefill(prompt(20))
        other.decode(ANSWER[:1])
        other.set_state(state)
        assert set_first_cells(other, first)
        assert_same([other.decode([token]) for token in ANSWER], expected)


def test_stock_prefill_after_all_tokens_were_removed(load_tiny):
    """As llama_cpp.Llama.eval does it: llama_memory_seq_rm of everything, no llama_memory_clear."""
    model = load_tiny("llama")
    with model.context(OPTIONS["plain-f16"]) as context, model.context(OPTIONS["plain-f16"]) as stock:
        prune(context, "fastkv")
        assert llama_cpp.llama_memory_seq_rm(context.memory, -1, 0, -1)
        tokens = prompt(100, seed=2)
        assert_same([context.decode(tokens)], [stock.prefill(tokens)])


def test_a_tail_of_the_prompt_is_removed(load_tiny):
    """Lossy, as every pruned prompt is, but the next token sees itself at least."""
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as context:
        prune(context, "fastkv")
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, N_TOKENS // 2, -1)
        assert np.isfinite(context.decode(ANSWER[:1])).all()
