"""Session.keep_rows() against its NumPy twin, byte for byte, on the KV cells that llama.cpp saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.native.session import Session
from harness import F16, F32, KV_NAMES, Q8_0, KVState, Model, Options, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES
from twins import assert_rows, random_index

OPTIONS = Options(n_batch=40, n_ubatch=24)
N_TOKENS = 90
N_KEPT = 33

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0, F32], ids=KV_NAMES.get)


def stock_cells(model: Model, options: Options, tokens: list[int]) -> KVState:
    with model.context(options) as context:
        context.prefill(tokens)
        cells = context.cells()
    assert cells.positions == list(range(len(tokens)))
    return cells


def newest_positions(indices: list[np.ndarray]) -> list[int]:
    """The newest token that any layer and head keeps in each cell."""
    return np.max([index.max(axis=0) if index.ndim == 2 else index for index in indices], axis=0).tolist()


def keep_in_every_layer(session: Session, tokens: list[int], indices: list[np.ndarray]) -> None:
    session.begin(tokens, 8)
    for index in indices:
        session.run(1, False)
        assert session.keep_rows(index) == index.shape[-1]
    session.finish()


# heads of 32 and 64, in q8_0: 34 bytes, by the host; 68, by the device
@pairs(per_head=[True, False], flash=[False, True], kv=[F16, Q8_0, F32], head_dim=[32, 64])
def test_rows_of_every_layer(load_tiny, per_head, flash, kv, head_dim):
    model = load_tiny("llama", head_dim=head_dim)
    options, tokens, rng = replace(OPTIONS, flash=flash, kv=kv), prompt(N_TOKENS), np.random.default_rng(1)
    indices = [random_index(rng, N_TOKENS, N_KEPT, model.n_head_kv if per_head else None) for _ in range(model.n_layer)]
    with model.context(options) as context:
        keep_in_every_layer(context.session(), tokens, indices)
        cells = context.cells()
    assert_rows(cells, stock_cells(model, options, tokens), indices)
    assert cells.positions == newest_positions(indices)


@with_flash
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_every_architecture(load_tiny, architecture, flash):
    model = load_tiny(architecture)
    options, tokens, rng = replace(OPTIONS, flash=flash), prompt(N_TOKENS), np.random.default_rng(2)
    indices = [random_index(rng, N_TOKENS, N_KEPT, model.n_head_kv) for _ in range(model.n_layer)]
    with model.context(options) as context:
        keep_in_every_layer(context.session(), tokens, indices)
        assert_rows(context.cells(), stock_cells(model, options, tokens), indices)


@pytest.mark.parametrize("n_kept", [1, 2, N_TOKENS - 1, N_TOKENS])
def test_number_of_rows(load_tiny, n_kept):
    model, tokens, rng = load_tiny("llama"), prompt(N_TOKENS), np.random.default_rng(3)
    indices = [random_index(rng, N_TOKENS, n_kept, model.n_head_kv) for _ in range(model.n_layer)]
    with model.context(OPTIONS) as context:
        keep_in_every_layer(context.session(), tokens, indices)
        assert_rows(context.cells(), stock_cells(model, OPTIONS, tokens), indices)


def test_keeping_again_replaces(load_tiny):
    """The last call for a layer counts; rows of a shared index may follow rows per head."""
    model, tokens, rng = load_tiny("llama"), prompt(N_TOKENS), np.random.default_rng(4)
    indices = [random_index(rng, N_TOKENS, N_KEPT, None) for _ in range(model.n_layer)]
    with model.context(OPTIONS) as context:
        session = context.session()
        session.begin(tokens, 8)
        for index in indices:
            session.run(1, False)
            session.keep_rows(random_index(rng, N_TOKENS, N_KEPT, model.n_head_kv))
            session.keep_rows(index)
        session.finish()
        assert_rows(context.cells(), stock_cells(model, OPTIONS, tokens), indices)


@with_flash
def test_cells_fewer_than_the_prompt(load_tiny, flash):
    """256 cells serve a prompt of 600 tokens in chunks longer than the cells."""
    model, tokens, rng = load_tiny("llama", n_layer=3), prompt(600), np.random.default_rng(5)
    options = Options(n_ctx=1024, n_batch=512, n_ubatch=512, flash=flash)
    indices = [random_index(rng, 600, 256, model.n_head_kv) for _ in range(model.n_layer)]
    with model.context(replace(options, n_ctx=256)) as context:
        session = context.session(n_ctx=1024)
        assert session.info().n_cells == 256
        keep_in_every_layer(session, tokens, indices)
        assert_rows(context.cells(), stock_cells(model, options, tokens), indices)


@with_kv
@with_flash
def test_rows_up_to_a_selection_layer(load_tiny, flash, kv):
    """Layers 0..s hold rows per head, deeper ones the kept tokens at their own positions."""
    model, tokens, rng = load_tiny("llama"), prompt(N_TOKENS), np.random.default_rng(6)
    options = replace(OPTIONS, flash=flash, kv=kv)
    shallow = [random_index(rng, N_TOKENS, N_KEPT, model.n_head_kv) for _ in range(3)]
    kept = np.union1d(random_index(rng, N_TOKENS - 8, N_KEPT - 8, None), np.arange(N_TOKENS - 8, N_TOKENS))
    with model.context(options) as context:
        session = context.session()
        session.begin(tokens, 8)
        for index in shallow:
            session.run(1, False)
            session.keep_rows(index)
        session.keep_tokens(kept)
        session.finish()
        cells = context.cells()
    full = stock_cells(model, options, tokens)
    assert_rows(cells, full, shallow)
    assert cells.positions == kept.tolist()
    # layer 3 still computes K and V from states that know nothing of the dropping
    assert_rows(KVState([], cells.keys[3:4], cells.values[3:4]), KVState([], full.keys[3:4], full.values[3:4]), [kept])


@with_flash
def test_finish_equals_running_the_layers(load_tiny, flash):
    """After keep_tokens: finish() at once, or layer by layer with all rows kept, in two drops or one."""
    model, tokens = load_tiny("llama"), prompt(N_TOKENS)
    kept = np.union1d(np.arange(0, N_TOKENS, 2), np.arange(N_TOKENS - 8, N_TOKENS)).astype(np.int32)
    results = []
    with model.context(replace(OPTIONS, flash=flash)) as context:
        session = context.session()
        for n_single in (0, 1, model.n_layer - 3):
            session.begin(tokens, 8)
            for _ in range(3):
                session.run(1, False)
                session.keep_rows(kept)
            session.keep_tokens(kept)
            for _ in range(n_single):
                session.run(1, False)
                session.keep_rows(None)
            session.finish()
            results.append((context.logits(), context.get_state()))
    for logits, state in results[1:]:
        assert np.array_equal(logits, results[0][0])
        assert state == results[0][1]


def test_the_last_token_reads_the_kept_rows(load_tiny):
    """The last prompt token's logits come from the full prompt, the next token's from the kept rows alone."""
    model, tokens, rng = load_tiny("llama"), prompt(N_TOKENS), np.random.default_rng(7)
    indices = [random_index(rng, N_TOKENS, N_KEPT, model.n_head_kv) for _ in range(model.n_layer)]
    with model.context(OPTIONS) as stock, model.context(OPTIONS) as context:
        keep_in_every_layer(context.session(), tokens, indices)
        first, second = stock.prefill(tokens), stock.decode([70])
        assert np.array_equal(context.logits(), first)
        assert np.abs(context.decode([70]) - second).max() > 1e-3
