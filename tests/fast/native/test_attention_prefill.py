"""Attention of our own within whole prefills: beside llama.cpp's on weights that nothing rounds, and where it stays out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.native.bindings import lib
from asl_gguf.policies import make_policy
from asl_gguf.report import PrefillReport
from harness import F16, F32, Q8_0, Context, Model, Options, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES, SLIDING
from tiny_kinds import KINDS, write_kind

KERNEL = lib.attention_kernel_name().decode()
needs_kernel = pytest.mark.skipif(KERNEL == "scalar", reason="this processor has no kernel beside the scalar one")
N_TOKENS = 140
TOKENS = [token % 128 for token in prompt(N_TOKENS)]  # the smallest vocabulary of the models
CHUNKS = {"n_batch": 512, "n_ubatch": 48}


def run(context: Context, mode: str, budget: int) -> tuple[np.ndarray, np.ndarray, PrefillReport]:
    """Logits after a prompt, the scores of its first layer with attention, and the report."""
    session = context.session()
    session.set_dequant(mode)
    report = prefill(session, TOKENS, make_policy("none" if budget == N_TOKENS else "fastkv"), budget)
    logits = context.logits()
    session.begin(TOKENS, 20)
    session.run(session.sliding.index(False) + 1, True)
    scores = session.scores()
    session.abort()
    return logits, scores, report


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)) / np.std(b))


def check(model: Model, options: Options) -> None:
    """Two attentions of one model agree to the rounding of K/V; that of F16 products is llama.cpp's alone."""
    with model.context(options) as ours, model.context(options) as stock:
        logits, scores, report = run(ours, "all", N_TOKENS)
        expected, expected_scores, stock_report = run(stock, "off", N_TOKENS)
    assert report.attention.startswith(f"own, {KERNEL}"), report.attention
    assert stock_report.attention == "llama.cpp's: weights are as stored"
    # llama.cpp rounds queries and weights where K/V are no F32, and rounds those to F16 for flash attention
    tolerance = 0.05 if options.kv == Q8_0 else 0.01 if options.kv != F32 or options.flash else 5e-4
    assert deviation(logits, expected) < tolerance
    assert deviation(scores, expected_scores) < tolerance


@needs_kernel
@pairs(architecture=[*ARCHITECTURES, *SLIDING], flash=[False, True], kv=[F16, F32, Q8_0])
def test_as_llama_cpp(tiny_model, architecture, flash, kv):
    if architecture == "llama-moe" and kv == Q8_0:
        pytest.skip("rounding chooses other experts")
    with closing(Model(tiny_model(architecture, weight_type="F32"))) as model:
        check(model, Options(flash=flash, kv=kv, **CHUNKS))


@pytest.mark.long
@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention(tmp_path: Path, kind: str):
    """Those that cannot be replaced say why."""
    with closing(Model(write_kind(tmp_path / "model.gguf", kind))) as model:
        for flash in (False, True):
            with model.context(Options(flash=flash, kv=F32, **CHUNKS)) as context:
                (logits, scores, report), (rounded, rounded_scores, _), (expected, expected_scores, _) = (
                    run(context, mode, N_TOKENS) for mode in ("all", "int8", "off")
                )
            assert report.attention.startswith("own") or "llama.cpp's: " in report.attention
            assert deviation(logits, expected) < (0.02 if flash else 5e-4), report.attention
            assert deviation(scores, expected_scores) < (0.02 if flash else 5e-4), report.attention
            # weights are F32: the integers are those of attention
            assert deviation(rounded, expected) < (0.02 if flash else 2e-3), report.attention
            assert deviation(rounded_scores, expected_scores) < (0.02 if flash else 2e-3), report.attention


@needs_kernel
@pairs(architecture=["llama", *SLIDING], flash=[False, True])
def test_pruned(tiny_model, architecture, flash):
    """Deeper layers attend to tokens that do not follow each other: sliding windows need llama.cpp's mask."""
    with closing(Model(tiny_model(architecture, weight_type="F32"))) as model:
        options = Options(flash=flash, kv=F32, **CHUNKS)
        with model.context(options) as ours, model.context(options) as stock:
            logits, _, report = run(ours, "all", 60)
            expected, _, stock_report = run(stock, "off", 60)
        assert report.attention.startswith("own") and report.pruned
        assert report.selected == stock_report.selected
        assert deviation(logits, expected) < (0.01 if flash else 5e-4)


@needs_kernel
@pytest.mark.parametrize("mode", ["int8", "int16"])
def test_chunk_size_changes_no_bit(tiny_model, mode):
    """With packed weights and our own attention, nothing depends on where chunks end."""
    with closing(Model(tiny_model("llama", weight_type="Q8_0"), repack=False)) as model:
        found = []
        for n_ubatch in (512, 70, 35):  # below 32 tokens weights stay as stored
            with model.context(Options(n_batch=512, n_ubatch=n_ubatch)) as context:
                found.append(run(context, mode, N_TOKENS)[:2])
    for logits, scores in found[1:]:
        assert np.array_equal(logits, found[0][0])
        assert np.allclose(scores, found[0][1], rtol=1e-5)  # sums of chunks are added


@needs_kernel
def test_threads_change_no_bit(tiny_model):
    import llama_cpp

    with closing(Model(tiny_model("llama", weight_type="Q8_0"), repack=False)) as model:
        found = []
        for n_threads in (1, 3):
            with model.context(Options(n_batch=512, n_ubatch=512)) as context:
                llama_cpp.llama_set_n_threads(context.handle, n_threads, n_threads)
                found.append(run(context, "auto", 60)[:2])
    for one, three in zip(*found, strict=True):
        assert np.array_equal(one, three)


def test_weights_that_nothing_rounds_keep_llama_cpps_bits(tiny_model):
    """By default. Another mode is asked for by name."""
    with closing(Model(tiny_model("llama", weight_type="F16"))) as model:
        with model.context(Options(**CHUNKS)) as ours, model.context(Options(**CHUNKS)) as stock:
            logits, scores, report = run(ours, "auto", N_TOKENS)
            expected, expected_scores, _ = run(stock, "off", N_TOKENS)
    assert report.attention == "llama.cpp's: no weight is quantised"
    assert np.array_equal(logits, expected) and np.array_equal(scores, expected_scores)
