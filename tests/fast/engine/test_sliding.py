"""Models whose layers attend to a sliding window or to all tokens, in turn (tiny ones: every second layer to all)."""

from __future__ import annotations

import ctypes
from contextlib import closing
from typing import Any

import gguf
import numpy as np
import pytest

from asl_gguf.cache.host_kv import HostKV
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Replay, record
from asl_gguf.engine.reusing import ReusingLayers
from asl_gguf.errors import NativeError, OptionError, PrefillCancelled
from asl_gguf.inspect.inspection import Question, inspect_prompt
from asl_gguf.native.session import sliding_layers
from asl_gguf.policies import ASL, REGISTRY, FastKV, Full, PyramidInfer, SnapKV, SpanASL, parse_policy, ranking
from harness import F16, F32, Q8_0, Context, Options, assert_same, llama_cpp, prompt
from pairs import pairs
from prefills import ON_ANY_MODEL
from tiny_gguf import SLIDING, SLIDING_WINDOW
from tiny_llama import greedy, logits
from twins import relative_error

N_LAYER = 6
FULL_LAYERS = (1, 3, 5)
N_TOKENS, N_KEPT, WINDOW = 320, 60, 8
TOKENS = prompt(N_TOKENS)
ANSWER = [70, 71, 72]
N_WINDOW_CELLS = 256
"""of sliding layers: window and chunk, padded"""
SELECTS = ASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2)

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_cells = pytest.mark.parametrize("swa_full", [True, False], ids=["all-cells", "window-cells"])


@pytest.fixture(params=SLIDING)
def architecture(request) -> str:
    return request.param


@pytest.fixture
def model(load_tiny, architecture):
    return load_tiny(architecture)


@pytest.fixture
def context(model, swa_full):
    with model.context(Options(swa_full=swa_full)) as context:
        yield context


def prune(context: Context, tokens: list[int] = TOKENS, policy: Any = SELECTS) -> Any:
    report = prefill(context.session(1024), tokens, policy, N_KEPT)
    assert report.pruned
    return report


def assert_as_stock(context: Context, stock: Context, n_tokens: int, swa_full: bool) -> None:
    """Bit for bit, unless stock's cells for the window went round: it sums up in another order then."""
    found, expected, what = context.continuation(ANSWER), stock.continuation(ANSWER), f"{n_tokens} tokens"
    if swa_full or n_tokens <= N_WINDOW_CELLS:
        assert_same(found, expected, what)
    else:
        # without flash attention probabilities are rounded to f16 before the sum, on some processors the sum as well
        np.testing.assert_allclose(found, expected, atol=0.05 if stock.options.flash else 5e-3, err_msg=what)


def test_layers(model):
    assert sliding_layers(model.handle) == tuple(layer not in FULL_LAYERS for layer in range(N_LAYER))


@pairs(chunks=[(64, 64), (40, 24)], flash=[False, True], kv=[F16, Q8_0, F32], swa_full=[True, False])
def test_nothing_pruned_is_stock(model, chunks, flash, kv, swa_full):
    n_batch, n_ubatch = chunks
    options = Options(n_batch=n_batch, n_ubatch=n_ubatch, flash=flash, kv=kv, swa_full=swa_full)
    with model.context(options) as stock, model.context(options) as context:
        for n_tokens in (1, SLIDING_WINDOW, SLIDING_WINDOW + 1, 64, 65, N_TOKENS):
            context.clear()
            stock.prefill(TOKENS[:n_tokens])
            report = prefill(context.session(), TOKENS[:n_tokens], Full(), n_tokens)
            assert not report.pruned and report.kept_tokens == n_tokens
            assert_as_stock(context, stock, n_tokens, swa_full)


@pairs(layer=range(1, N_LAYER), flash=[False, True], swa_full=[True, False])
def test_all_tokens_kept_at_any_layer_is_stock(model, layer, flash, swa_full):
    options = Options(flash=flash, swa_full=swa_full)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(TOKENS)
        session = context.session()
        session.begin(TOKENS, WINDOW)
        for il in range(layer):
            session.run(1, il in FULL_LAYERS)
            if il in FULL_LAYERS:
                session.keep_rows(None)
        session.keep_tokens(np.arange(N_TOKENS, dtype=np.int32))
        session.finish()
        assert_as_stock(context, stock, N_TOKENS, swa_full)


@pairs(architecture=SLIDING, flash=[False, True], kv=[F16, Q8_0, F32])
def test_scores_equal_the_twin(model, tiny_model, architecture, flash, kv):
    """Sinks of attention included, where a model has them."""
    scale = 1.0 if architecture == "gemma3" else 32**-0.5  # gemma3 scales its queries
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(tiny_model(architecture)).tensors}
    assert ("blk.0.attn_sinks.weight" in tensors) == (architecture == "gpt-oss")
    with model.context(Options(flash=flash, kv=kv)) as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        for layer in range(N_LAYER):
            session.run(1, True)
            if layer in FULL_LAYERS:
                queries, keys = session.queries(), session.keys()
                sinks = tensors.get(f"blk.{layer}.attn_sinks.weight")
                twin = ranking.window_scores(queries, keys, scale, sinks=sinks)
                assert relative_error(session.scores(), twin) < 1e-5


@pairs(n_layer=[2, 3, 5], flash=[False, True], swa_full=[True, False])
def test_one_full_layer_and_sliding_ones_at_the_end(load_tiny, architecture, n_layer, flash, swa_full):
    """Layers behind the last that a policy is asked about: nothing pruned is stock, and a pruned prompt goes on."""
    model, options = load_tiny(architecture, n_layer=n_layer), Options(flash=flash, swa_full=swa_full)
    slide = tuple(layer % 2 == 0 for layer in range(n_layer))
    assert sliding_layers(model.handle) == slide
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(TOKENS)
        session = context.session(1024)
        prefill(session, TOKENS, Full(), N_TOKENS)
        assert_as_stock(context, stock, N_TOKENS, swa_full)
        for policy in (SpanASL(window=WINDOW, min_layer=1, obs_layers=2), FastKV(tsp_layer=1), SnapKV(window=WINDOW)):
            report = prefill(session, TOKENS, policy, N_KEPT)
            assert report.pruned and {report.rows_by_layer[il] for il in range(n_layer) if not slide[il]} == {N_KEPT}
            before = (report.selection_layer or n_layer - 1) + 1
            assert report.token_layers == before * N_TOKENS + (n_layer - before) * len(report.selected or TOKENS)
            assert all(np.isfinite(values).all() for values in context.continuation(ANSWER))


@with_flash
def test_cells_and_chunks_change_nothing(model, flash):
    """Whether sliding layers have cells for all tokens or for their window, and wherever chunks end: what later
    tokens see is the same. Positions of kept tokens have gaps, which masks must respect."""
    results = []
    for swa_full in (True, False):
        for n_ubatch in (24,) if flash else (16, 24, 64):  # flash attention rounds by chunks, in stock too
            options = Options(flash=flash, swa_full=swa_full, n_batch=n_ubatch, n_ubatch=n_ubatch)
            with model.context(options) as context:
                report = prune(context)
                results.append((report.selected, np.array(context.continuation([*ANSWER, *prompt(30)]))))
    for selected, values in results[1:]:
        assert selected == results[0][0]
        np.testing.assert_allclose(values, results[0][1], atol=0.05 if flash else 1e-4)


@pairs(name=[name for name in ON_ANY_MODEL if name != "none"], architecture=SLIDING, swa_full=[True, False])
def test_every_policy(model, name, swa_full):
    """Kept rows of full layers are within the budget; the work done is what the report says."""
    calls: list[int] = []
    with model.context(Options(swa_full=swa_full)) as context:
        session = context.session()
        session.set_progress(lambda done, _: calls.append(done))
        policy = REGISTRY[name]()
        n_kept = max(N_KEPT, policy.min_kept)
        report = prefill(session, TOKENS, policy, n_kept)
        assert report.pruned and max(report.rows_by_layer[il] for il in FULL_LAYERS) == report.kept_tokens
        assert n_kept <= report.kept_tokens <= policy.max_rows(N_TOKENS, n_kept)
        assert report.selection_layer is None or report.selection_layer in FULL_LAYERS
        assert all(layer in FULL_LAYERS for layer, _, _ in report.variance)
        passes = [done for done, following in zip(calls, [*calls[1:], 0]) if following < done]
        assert sum(passes) == report.token_layers
        assert all(np.isfinite(values).all() for values in context.continuation(ANSWER))


@with_cells
def test_what_the_cells_hold(context, swa_full):
    """Sliding layers keep, of the tokens that are left, those that later tokens see, whatever cells there are."""
    report = prune(context)
    info = context.session(1024).info()
    in_window = [token for token in report.selected if token > N_TOKENS - SLIDING_WINDOW]
    assert info.n_cells_used == N_KEPT and 0 < len(in_window) == info.n_cells_sliding_used < N_KEPT
    assert {report.rows_by_layer[il] for il in range(N_LAYER) if il not in FULL_LAYERS} == {info.n_cells_sliding_used}
    assert {report.rows_by_layer[il] for il in FULL_LAYERS} == {N_KEPT}
    sliding = info.kv_bytes_cell_sliding
    assert 0 < sliding < info.kv_bytes_cell
    assert report.kv_bytes_prompt == N_KEPT * (info.kv_bytes_cell - sliding) + info.n_cells_sliding_used * sliding


@with_cells
def test_after_a_pruned_prefill(model, context, swa_full):
    """State, a second turn, and a tail that is removed: as in any context."""
    prune(context)
    state, turn = context.get_state(), prompt(40, seed=1)
    expected = context.continuation(ANSWER)
    context.clear()
    context.set_state(state)
    again = [context.decode([token]) for token in ANSWER]
    assert_same(again, expected[1:], "a restored state")
    after_turn = context.decode(turn)
    if swa_full:  # with cells for the window only, llama.cpp cannot go back
        assert llama_remove(context, N_TOKENS + len(ANSWER))
        assert_same([context.decode(turn)], [after_turn], "the tail again")
    with model.context(context.options) as other:
        other.set_state(state)
        for token in ANSWER:
            other.decode([token])
        assert_same([other.decode(turn)], [after_turn], "the state in another context")


def llama_remove(context: Context, begin: int) -> bool:
    return llama_cpp.llama_memory_seq_rm(context.memory, 0, begin, -1)


@with_cells
def test_the_next_prompt_is_stock(model, context, swa_full):
    """After a pruned prompt, a cancelled one, and one that failed."""
    prune(context)
    session = context.session()
    session.set_progress(lambda done, _: done < 3 * N_TOKENS)
    with pytest.raises(PrefillCancelled):
        prefill(session, TOKENS, SELECTS, N_KEPT)
    session.set_progress(None)
    session.begin(TOKENS, WINDOW)
    session.run(1, True)
    with pytest.raises(NativeError, match="layer 0 has a sliding window and keeps its K/V by itself"):
        session.keep_rows(None)
    with model.context(context.options) as stock:
        stock.prefill(TOKENS[:200])
        prefill(session, TOKENS[:200], Full(), 200)
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


def test_the_report_does_not_depend_on_the_cells(model):
    """As many rows of sliding layers in a context that has cells for all tokens, such as one that serves all policies."""
    reports = []
    for n_ctx in (256, 1024):
        with model.context(Options(n_ctx=n_ctx)) as context:
            reports.append(prune(context))
    assert reports[0].rows_by_layer == reports[1].rows_by_layer
    assert reports[0].kv_bytes_prompt == reports[1].kv_bytes_prompt < reports[0].kv_bytes_prompt_full


@pairs(policy=[SELECTS, SnapKV(window=WINDOW)], architecture=SLIDING, swa_full=[True, False])
def test_an_abort_callback_cancels(model, context, policy, swa_full):
    """Of the decode context: it computes the output head."""
    stop = llama_cpp.ggml_abort_callback(lambda _: True)
    llama_cpp.llama_set_abort_callback(context.handle, stop, None)
    session = context.session()
    with pytest.raises(PrefillCancelled):
        prefill(session, TOKENS, policy, N_KEPT)
    llama_cpp.llama_set_abort_callback(context.handle, ctypes.cast(None, llama_cpp.ggml_abort_callback), None)
    assert session.info().n_cells_used == 0
    with model.context(context.options) as stock:
        stock.prefill(TOKENS[:200])
        prefill(session, TOKENS[:200], Full(), 200)
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


@pairs(
    policy=[SELECTS, SpanASL(), SnapKV(), FastKV(tsp_layer=2, cache_k="all"), PyramidInfer(min_context=12)],
    architecture=SLIDING,
    swa_full=[True, False],
)
def test_a_record_of_layers(model, context, policy, swa_full):
    prune(context, policy=policy)
    expected = context.continuation(ANSWER)
    session = context.session()
    prefill(Replay(session, record(session, TOKENS)), TOKENS, policy, N_KEPT)
    assert_same(context.continuation(ANSWER), expected)


@pairs(
    policy=[SELECTS, SnapKV(window=WINDOW), FastKV(tsp_layer=3, cache_k=80), PyramidInfer(min_context=12)],
    architecture=SLIDING,
    swa_full=[True, False],
)
def test_a_past_on_the_host(model, context, policy, swa_full):
    """A question that selects again does as its prompt alone."""
    kept, document = HostKV(), TOKENS[:256]
    for question in (prompt(32, seed=1), prompt(30, seed=2)):
        session = ReusingLayers(context.session(), kept)
        report = session.corrected(prefill(session, document + question, policy, N_KEPT))
    n_window = (len(document) + 30) // 5 if policy.name == "pyramidinfer" else 0  # which is computed
    assert report.reused_tokens == min(len(document), len(document) + 30 - n_window)
    found = context.continuation(ANSWER)
    with model.context(context.options) as fresh:
        expected = prefill(fresh.session(), document + question, policy, N_KEPT)
        assert report.selected == expected.selected and report.rows_by_layer == expected.rows_by_layer
        assert_same(found, fresh.continuation(ANSWER))


# in `Llama`


@pytest.mark.parametrize("policy", ["asl-span:min_layer=2:obs_layers=2:tau=2", "snapkv", "gemfilter", "pyramidinfer"])
def test_inspection_shows_what_the_cells_hold(tiny_model, architecture, policy):
    """As many tokens in each layer as the report says it has rows, and in sliding layers the newest that are left."""
    options = {"n_threads": 1, "n_threads_batch": 1, "swa_full": False}
    question = Question(str(tiny_model(architecture)), "The thing and you. " * 40, 1024, 4, options=options)
    inspection = inspect_prompt(question, 80, parse_policy(policy))
    report, kept = inspection.report, inspection.kept
    assert report.pruned and kept.sum(axis=1) == pytest.approx(report.rows_by_layer, rel=1e-5)
    left = report.selected or range(report.prompt_tokens)
    for layer in report.sliding_layers:
        assert np.flatnonzero(kept[layer]).tolist() == list(left)[-report.rows_by_layer[layer] :]


@pytest.mark.parametrize("swa_full", [None, False])
def test_llama(make, architecture, swa_full, tmp_path):
    options = {"asl_budget": 0.2, "asl_policy": SELECTS, "asl_room": 64} | (
        {} if swa_full is None else {"swa_full": swa_full}
    )
    llm = make(architecture=architecture, **options)
    answer = greedy(llm, TOKENS, 8)
    report = llm.last_prefill
    assert report.pruned and report.kept_tokens == N_TOKENS // 5 and report.selection_layer in FULL_LAYERS
    assert report.kv_bytes < report.kv_bytes_full and report.reason is None
    llm.save_prompt(tmp_path / "prompt")
    turn = TOKENS + answer + prompt(10, seed=3)
    expected = greedy(llm, turn, 4)
    assert llm.last_prefill.reused_tokens == len(TOKENS) + len(answer) - 1
    with closing(make(architecture=architecture, **options)) as other:
        other.load_prompt(tmp_path / "prompt")
        assert greedy(other, turn, 4) == expected
        # llama.cpp saves no cells that are out of the window: sums run in another order
        np.testing.assert_allclose(logits(other), logits(llm), atol=0.01)


def test_other_options_of_llama(make, architecture):
    base = {"architecture": architecture, "asl_policy": SELECTS, "asl_min_prompt": 64}
    llm = make(**base, asl_budget=0.2, asl_full_kv=True, asl_guard=0.3, asl_protect=[(10, 20)])
    for seed in range(2):
        greedy(llm, TOKENS[:300] + prompt(20, seed=seed), 4)
    assert llm.last_prefill.reused_tokens == 300 and llm.last_prefill.pruned
    assert set(range(10, 20)) <= set(llm.last_prefill.selected)
    plain = make(architecture=architecture)
    whole = make(**base, asl_budget=1.0)
    assert greedy(whole, TOKENS) == greedy(plain, TOKENS)


def test_sizes(make, architecture):
    """Buffers stay within the size, whatever cells the sliding layers have."""
    for swa_full in (True, False):
        llm = make(architecture=architecture, asl_budget="fit:1MiB", asl_policy=SELECTS, asl_room=64, swa_full=swa_full)
        report = llm.prefill(prompt(900))
        assert report.kv_bytes + report.kv_bytes_prefill_peak <= 2**20 and report.pruned


def test_a_budget_below_the_window_is_an_error(make, architecture):
    with pytest.raises(OptionError, match="asl_budget: expected at least 9 tokens"):
        make(architecture=architecture, asl_budget=4, asl_policy=SELECTS).prefill(TOKENS)
