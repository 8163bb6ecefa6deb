"""A bias of distances (ALiBi): each row counts from its own token, whatever its cell stands for."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import NativeError
from asl_gguf.native import context, moving
from asl_gguf.native.bindings import lib
from asl_gguf.policies import Full, make_policy, ranking
from harness import F16, F32, Options, assert_same, prompt
from prefills import ON_ANY_MODEL
from tiny_llama import greedy
from tiny_numpy import NumpyLlama
from twins import TOLERANCE, random_index, relative_error

N_TOKENS, N_KEPT, WINDOW = 150, 40, 8
N_LAYER, N_HEAD, N_HEAD_KV, HEAD_DIM = 6, 4, 2, 32
SLOPES = 2.0 ** -np.array([2.0, 4.0, 6.0, 8.0])
"""of 4 heads under a largest bias of 8"""
ANSWER = [70, 71, 72]
with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])


@pytest.fixture
def model(load_tiny):
    return load_tiny("refact")


def n_shifts(ctx) -> int:
    return lib.context_get_shifts(ctx.handle, None, 0)


@with_flash
@pytest.mark.parametrize("chunks", [(40, 24), (256, 256)])
def test_nothing_pruned_is_stock(model, flash, chunks):
    options = Options(n_ctx=256, n_batch=chunks[0], n_ubatch=chunks[1], flash=flash)
    with model.context(options) as stock, model.context(options) as ours:
        session = ours.session()
        for seed in (0, 1):
            stock.prefill(prompt(N_TOKENS, seed))
            prefill(session, prompt(N_TOKENS, seed), Full(), N_TOKENS)
            assert_same(ours.continuation(ANSWER), stock.continuation(ANSWER))
            assert n_shifts(ours) == 0


@with_flash
@pytest.mark.parametrize("window", [WINDOW, 140])
def test_scores_are_the_twins(model, flash, window):
    weights = np.linspace(0.1, 2, window, dtype=np.float32)
    with model.context(Options(n_ctx=256, n_batch=40, n_ubatch=40, flash=flash)) as ours:
        session = ours.session()
        session.begin(prompt(N_TOKENS), window)
        session.set_window(window, weights)
        for _ in range(3):
            session.run(1, True)
            expected = ranking.window_scores(
                session.queries(), session.keys(), HEAD_DIM**-0.5, weights, slopes=SLOPES.astype(np.float32)
            )
            assert relative_error(session.scores(), expected) < TOLERANCE


def keep(session, tokens: list[int], indices: list[np.ndarray]) -> None:
    session.begin(tokens, WINDOW)
    for index in indices:
        session.run(1, False)
        session.keep_rows(index)
    session.finish()


@pytest.mark.parametrize("counts", [[40] * 6, [70, 70, 50, 31, 31, 12]], ids=["even", "uneven"])
@pytest.mark.parametrize("flash, kv, tolerance", [(False, F32, 1e-4), (False, F16, 1e-2), (True, F16, 3e-2)])
def test_decoding_equals_attention_in_numpy(model, tiny_model, flash, kv, tolerance, counts):
    """Every layer and KV head has rows of tokens of its own."""
    rng, tokens = np.random.default_rng(0), prompt(N_TOKENS)
    indices = [random_index(rng, N_TOKENS, count, N_HEAD_KV) for count in counts]
    twin = NumpyLlama(tiny_model("refact"), slopes=SLOPES)
    options = Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv)
    with model.context(options) as stock, model.context(options) as ours:
        stock.prefill(tokens)
        full = stock.cells()
        keep(ours.session(n_ctx=512), tokens, indices)
        assert n_shifts(ours) == N_LAYER * N_HEAD * max(counts)
        kind = np.float32 if kv == F32 else np.float16
        keys, values = (
            [ranking.gather_rows(rows, i).view(kind).astype(np.float32) for rows, i in zip(part, indices, strict=True)]
            for part in (full.keys, full.values)
        )
        positions = [index.T for index in indices]
        by_cell = [np.broadcast_to(np.max(index, axis=0)[:, None], index.T.shape) for index in indices]
        wrong = twin.decode(ANSWER[0], N_TOKENS, keys, values, by_cell)[0]
        for step, token in enumerate(ANSWER):
            logits, keys, values = twin.decode(token, N_TOKENS + step, keys, values, positions)
            found = ours.decode([token])
            assert np.abs(found - logits).max() < tolerance
            if step == 0:
                assert np.abs(found - wrong).max() > tolerance, "positions make no difference"


@with_flash
@pytest.mark.parametrize("name", [name for name in ON_ANY_MODEL if name != "none"])
def test_every_policy(model, name, flash):
    """Chunks change nothing but rounding; a state goes on as the context that it was taken from."""
    found = []
    for n_batch, n_ubatch in ((64, 64), (48, 32)):
        options = Options(n_ctx=256, n_batch=n_batch, n_ubatch=n_ubatch, flash=flash, kv=F32 if not flash else F16)
        with model.context(options) as ours, model.context(options) as other:
            report = prefill(ours.session(), prompt(N_TOKENS), make_policy(name), 70)
            assert report.pruned
            cells, first, logits = context.take_cells(ours.handle), context.first_cells(ours.handle), ours.logits()
            expected = ours.continuation(ANSWER)
            assert context.put_cells(other.handle, cells, first, logits)
            assert n_shifts(other) == n_shifts(ours) - (len(ANSWER) * N_LAYER * N_HEAD if n_shifts(ours) else 0)
            assert_same(other.continuation(ANSWER), expected)
            found.append(expected)
    for a, b in zip(*found, strict=True):
        assert np.abs(a - b).max() < 0.02 * a.std()


def test_cells_that_were_freed_hold_new_tokens(model):
    """An answer is taken back, and the whole prompt: what stood in those cells is forgotten."""
    options = Options(n_ctx=256, n_batch=64, n_ubatch=64)
    with model.context(options) as ours, model.context(options) as stock:
        prefill(ours.session(), prompt(N_TOKENS), make_policy("snapkv"), 60)
        expected = ours.continuation(ANSWER)
        assert context.remove_from(ours.handle, N_TOKENS)
        assert_same([ours.decode([token]) for token in ANSWER], expected[-len(ANSWER) :])
        assert context.remove_from(ours.handle, 0)
        assert_same([ours.decode(prompt(60))], [stock.prefill(prompt(60))])


def test_states_of_others_are_refused(model, load_tiny):
    options = Options(n_ctx=256)
    with model.context(options) as ours, model.context(options) as other:
        prefill(ours.session(), prompt(N_TOKENS), make_policy("snapkv"), 60)
        cells = context.take_cells(ours.handle)
        shorter = cells[: -10 - 8 - 4] + cells[-18:]
        assert not context.put_cells(other.handle, shorter, (), None)
        with load_tiny("llama").context(options) as llama:
            shifts = np.zeros(8, dtype=np.float32)
            assert not lib.context_set_shifts(
                llama.handle, shifts.ctypes.data_as(lib.context_set_shifts.argtypes[1]), 8
            )


def test_what_a_context_holds_is_neither_extended_nor_moved(model):
    with model.context(Options(n_ctx=256)) as ours, model.context(Options(n_ctx=256)) as other:
        session = ours.session()
        prefill(session, prompt(N_TOKENS), make_policy("snapkv"), 60)
        with pytest.raises(NativeError, match="adds a bias of distances"):
            session.extend(prompt(20, 1), WINDOW)
        with pytest.raises(OptionError, match="expected a model without ALiBi"):
            moving.move(ours.handle, other.handle, 0)


@pytest.mark.filterwarnings("ignore:the K/V that this question goes on from")
def test_an_answer_a_turn_and_a_saved_prompt(tiny_model, tmp_path):
    tokens, turn = prompt(200), prompt(20, 2)

    def make() -> Llama:
        return Llama(str(tiny_model("refact")), n_ctx=512, asl_budget=60, verbose=False)

    with closing(make()) as llm, closing(make()) as other:
        first = greedy(llm, tokens)
        assert llm.last_prefill.pruned
        llm.save_prompt(tmp_path / "saved.asl")
        expected = greedy(llm, [*tokens, *first, *turn])
        assert llm.last_prefill.reused_tokens > 0
        other.load_prompt(tmp_path / "saved.asl")
        assert greedy(other, [*tokens, *first, *turn]) == expected
