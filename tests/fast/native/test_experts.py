"""Products of experts with packed weights: the kernels beside their twin, and whole prefills of mixtures of experts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from asl_gguf.bench.kernels import packed_kernel
from asl_gguf.engine.prefill import prefill
from asl_gguf.policies import make_policy
from harness import Model, Options, prompt
from twins import expert_product as twin_product
from twins import repacked
from weights import draw_weights, expert_product

FAST = packed_kernel() != "scalar"
needs_kernel = pytest.mark.skipif(not FAST, reason="this processor has no kernel beside the scalar one")
TYPES = ("q4_0", "q4_1", "q8_0", "mxfp4", "q2_K", "q4_K", "q6_K")
N_EXPERT = 5


def draw(
    name: str, n_tokens: int, n_used: int, n_acts: int, n_out: int = 37
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, experts of each token, of which the last is never chosen, and activations."""
    rng = np.random.default_rng(n_tokens)
    weights = np.array([draw_weights(rng, name, n_out, 256) for _ in range(N_EXPERT)])
    ids = np.array([rng.permutation(N_EXPERT - 1)[:n_used] for _ in range(n_tokens)])
    return weights, ids, rng.standard_normal((n_tokens, n_acts, 256)).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", TYPES)
def test_every_kernel_is_the_twin(name, bits):
    for n_tokens, n_used, n_acts in [(1, 1, 1), (3, 2, 1), (7, 3, 3), (40, 2, 2)]:
        weights, ids, x = draw(name, n_tokens, n_used, n_acts)
        twin, size = twin_product(name, weights, ids, x, bits)
        scalar = expert_product("scalar", name, weights, ids, x, bits)
        assert np.all(np.abs(scalar - twin) <= 2e-6 * size), (n_tokens, n_used, n_acts)
        for kernel in {"AVX2", packed_kernel()} if FAST else ():
            for n_threads in (1, 3, 50):
                got = expert_product(kernel, name, weights, ids, x, bits, n_threads=n_threads)
                assert np.array_equal(got.view(np.uint32), scalar.view(np.uint32)), (kernel, n_threads)


@pytest.mark.parametrize(("name", "form"), [("q4_K", (8, 8)), ("mxfp4", (8, 8)), ("q4_0", (4, 4))])
def test_repacked_weights(name, form):
    """llama.cpp interleaves rows of an expert, never of two."""
    weights, ids, x = draw(name, 9, 2, 1, n_out=40)
    interleaved = np.array([repacked(name, matrix, *form) for matrix in weights])
    expected = expert_product(packed_kernel(), name, weights, ids, x, 8)
    assert np.array_equal(expert_product(packed_kernel(), name, interleaved, ids, x, 8, form=form), expected)


def test_what_is_no_product():
    weights, ids, x = draw("q4_1", 2, 2, 1)
    for wrong in (-1, N_EXPERT):
        with pytest.raises(AssertionError):
            expert_product("scalar", "q4_1", weights, np.full_like(ids, wrong), x, 8)
    with pytest.raises(AssertionError):
        expert_product("scalar", "iq3_s", weights, ids, x, 8)
    with pytest.raises(AssertionError):
        expert_product("scalar", "q4_1", weights, ids, np.concatenate([x] * 3, axis=1), 8)  # of three experts


def run(model: Model, mode: str, options: Options, n_threads: int = 1) -> tuple[np.ndarray, int]:
    """Logits after a prompt, nothing pruned, and how many matrices were packed or expanded."""
    with model.context(options) as ours:
        llama_cpp.llama_set_n_threads(ours.handle, n_threads, n_threads)
        session = ours.session()
        session.set_dequant(mode)
        report = prefill(session, prompt(110), make_policy("none"), 110)
        return ours.logits(), report.n_dequantised


@needs_kernel
@pytest.mark.parametrize("architecture", ["llama-moe", "gpt-oss"])
def test_a_whole_prefill(tiny_model, architecture):
    """With activations of 16 bits, logits are those of weights expanded to F16."""
    with closing(Model(tiny_model(architecture, weight_type="Q8_0"), repack=False)) as model:
        expanded, n = run(model, "all", Options())
        for mode, tolerance in (("int16", 0.03), ("int8", 0.3)):  # near ties choose other experts
            packed, n_packed = run(model, mode, Options())
            assert n_packed == n > 0
            assert 0 < np.sqrt(np.mean((packed - expanded) ** 2)) < tolerance * np.std(expanded)


@needs_kernel
@pytest.mark.parametrize("mode", ["int8", "int16", "auto"])
def test_chunks_and_threads_change_no_bit(tiny_model, mode):
    with closing(Model(tiny_model("llama-moe", weight_type="Q8_0"), repack=False)) as model:
        expected, _ = run(model, mode, Options(n_batch=110, n_ubatch=110))
        for n_chunk, n_threads in ((110, 3), (55, 1), (37, 2)):  # below 32 tokens weights stay as stored
            got, _ = run(model, mode, Options(n_batch=n_chunk, n_ubatch=n_chunk), n_threads)
            assert np.array_equal(got, expected), (n_chunk, n_threads)


@needs_kernel
def test_few_tokens_an_expert(script, tmp_path: Path):
    """Packing would take longer than it saves: experts of few tokens keep llama.cpp's products, whatever the mode."""
    counts = []
    for n_expert in (8, 128):  # 27 tokens each, and 1
        path = tmp_path / f"{n_expert}.gguf"
        script.write_model(str(path), replace(script.SHAPES["tiny-experts"], n_expert=n_expert), "mxfp4")
        with closing(Model(path, repack=False)) as model:
            counts.append(run(model, "int8", Options(n_batch=110, n_ubatch=110))[1])
    assert counts[0] - counts[1] == 3 * 4 - 3  # the last FFN has one token


@needs_kernel
@pytest.mark.parametrize("mix", ["q4_k_m", "mxfp4"])
def test_files_as_llama_cpp_loads_them(script, tmp_path: Path, mix: str):
    """The same K/V, bit for bit, whether llama.cpp has repacked the weights or not."""
    script.write_model(str(tmp_path / "m.gguf"), script.SHAPES["tiny-experts"], mix)
    for mode in ("int8", "int16"):
        found = []
        for repack in (False, True):
            with closing(Model(tmp_path / "m.gguf", repack=repack)) as model, model.context() as ours:
                session = ours.session()
                session.set_dequant(mode)
                report = prefill(session, prompt(110), make_policy("none"), 110)
                assert report.n_dequantised == 7 * model.n_layer - 3
                found.append(np.concatenate([np.ravel(x) for x in (*ours.cells().keys, *ours.cells().values)]))
        assert np.array_equal(*found)
