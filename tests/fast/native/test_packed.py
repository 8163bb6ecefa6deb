"""Products with packed weights: every kernel against the scalar one, bit for bit, and against a twin in NumPy."""

from __future__ import annotations

from contextlib import closing

import gguf
import llama_cpp
import numpy as np
import pytest

from asl_gguf.bench.kernels import packed_kernel, type_names
from asl_gguf.engine.prefill import prefill
from asl_gguf.native.bindings import lib
from asl_gguf.policies import make_policy
from harness import Model, Options, prompt
from twins import packed_product
from weights import draw, floats, places_of_scales, product

SIMPLE = dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"), 32)
TYPES = {**SIMPLE, **dict.fromkeys(("q2_K", "q4_K", "q5_K", "q6_K"), 256)}
"""name: weights of a block"""
FAST = packed_kernel() != "scalar"
SHAPES = [(n_tokens, n_out, n_in) for n_tokens in (1, 3, 4, 5, 7) for n_out, n_in in ((1, 256), (16, 512), (37, 768))]
"""tokens, outputs, inputs: whole tiles, and what does not fill one"""


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", TYPES)
def test_the_scalar_kernel_is_the_twin(name, bits):
    for n_tokens, n_out, n_in in [*SHAPES, (2, 5, 4096)]:
        weights, x = draw(n_tokens, name, n_tokens, n_out, n_in)
        twin, size = packed_product(name, weights, x, bits)
        got = product("scalar", name, weights, x, bits)
        assert np.all(np.abs(got - twin) <= 2e-6 * size), (n_tokens, n_out, n_in)


@pytest.mark.parametrize("name", [name for name, n_block in TYPES.items() if n_block == 32])
def test_short_rows(name):
    for n_in in (32, 64, 96, 160):
        weights, x = draw(n_in, name, 5, 19, n_in)
        for bits in (8, 16):
            twin, size = packed_product(name, weights, x, bits)
            assert np.all(np.abs(product(packed_kernel(), name, weights, x, bits) - twin) <= 2e-6 * size)


@pytest.mark.skipif(not FAST, reason="this processor has no kernel beside the scalar one")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", TYPES)
def test_the_fast_kernel_gives_the_same_bits(name, bits):
    for n_tokens, n_out, n_in in [*SHAPES, (70, 33, 256)]:
        weights, x = draw(n_tokens, name, n_tokens, n_out, n_in)
        expected = product("scalar", name, weights, x, bits)
        for kernel in ("AVX2", packed_kernel()):
            assert np.array_equal(product(kernel, name, weights, x, bits).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_integers_do_not_overflow(bits):
    """All weights and activations at their limits: the sums of 16 bits are as large as they get."""
    for name in TYPES:
        weights, _ = draw(0, name, 1, 17, 512)
        full = np.where(weights == weights, np.uint8(255), weights)
        blocks = full.reshape(17, -1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]][1])
        if name == "mxfp4":
            blocks[..., 0] = 120
        for place in places_of_scales(name):
            blocks[..., place : place + 2] = np.float16(0.01).reshape(1).view(np.uint8)
        for sign in (1.0, -1.0):
            x = np.full((3, 512), sign, np.float32)
            expected = product("scalar", name, full, x, bits)
            assert np.array_equal(product(packed_kernel(), name, full, x, bits), expected), name
            twin, size = packed_product(name, full, x, bits)
            assert np.all(np.abs(expected - twin) <= 2e-6 * size), name


@pytest.mark.parametrize("bits", [8, 16])
def test_zeros_and_tiny_activations(bits):
    weights, x = draw(0, "q4_1", 4, 16, 64)
    x[0], x[1], x[2, :32] = 0, 1e-38, 0
    y = product(packed_kernel(), "q4_1", weights, x, bits)
    assert np.array_equal(y, product("scalar", "q4_1", weights, x, bits))
    assert not y[:2].any() and np.isfinite(y).all() and y[2:].all()


def test_sixteen_bits_are_nearer_than_eight():
    weights, x = draw(0, "q4_1", 8, 48, 512)
    exact = x.astype(np.float64) @ gguf.quants.dequantize(weights, gguf.GGMLQuantizationType.Q4_1).astype(np.float64).T
    errors = [np.std(product(packed_kernel(), "q4_1", weights, x, bits) - exact) for bits in (8, 16)]
    assert errors[1] < errors[0] / 50


def test_what_cannot_be_packed():
    weights, x = draw(0, "q4_1", 1, 1, 64)
    arguments = (weights.ctypes.data, 0, 0, 1, 64, 8, floats(x), 1, floats(np.empty(1, np.float32)))
    assert lib.packed_product(b"scalar", type_names()["q4_1"], *arguments)
    assert not lib.packed_product(b"scalar", type_names()["iq3_s"], *arguments)
    assert not lib.packed_product(b"scalar", 999, *arguments)
    assert not lib.packed_product(b"MMX", type_names()["q4_1"], *arguments)
    assert not lib.packed_product(b"scalar", type_names()["q4_K"], *arguments)  # 64 inputs are no whole block


def logits(model: Model, mode: str, budget: int, n_threads: int = 1) -> tuple[np.ndarray, int]:
    with model.context() as ours:
        llama_cpp.llama_set_n_threads(ours.handle, n_threads, n_threads)
        session = ours.session()
        session.set_dequant(mode)
        report = prefill(session, prompt(110), make_policy("none" if budget == 110 else "snapkv"), budget)
        return ours.logits(), report.n_dequantised


@pytest.mark.skipif(not FAST, reason="this processor has no kernel beside the scalar one")
@pytest.mark.parametrize("budget", [110, 64])
@pytest.mark.parametrize("weight_type", ["Q4_1", "Q8_0"])
def test_a_whole_prefill(tiny_model, weight_type, budget):
    """Packed weights are the stored ones: with activations of 16 bits, logits are those of weights expanded to F16."""
    with closing(Model(tiny_model("llama", weight_type=weight_type), repack=False)) as model:
        expanded, n = logits(model, "all", budget)
        spread = np.std(expanded)
        for mode, tolerance in (("int16", 0.02), ("int8", 0.05)):  # F16 rounds activations, too
            packed, n_packed = logits(model, mode, budget)
            assert n_packed == n > 0
            assert 0 < np.sqrt(np.mean((packed - expanded) ** 2)) < tolerance * spread


def test_threads_do_not_change_a_bit(tiny_model):
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model:
        assert np.array_equal(*(logits(model, "int8", 110, n_threads)[0] for n_threads in (1, 3)))


@pytest.mark.skipif(not FAST, reason="this processor has no kernel beside the scalar one")
@pytest.mark.parametrize("mode", ["int8", "int16"])
def test_chunks_do_not_change_a_bit(tiny_model, mode):
    """A layer of one chunk is packed panel by panel as it is multiplied, one of several chunks before."""
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model:
        results = []
        for n_chunk in (110, 55):
            with model.context(Options(n_batch=n_chunk, n_ubatch=n_chunk)) as ours:
                session = ours.session()
                session.set_dequant(mode)
                prefill(session, prompt(110), make_policy("none"), 110)
                results.append(ours.logits())
        assert np.array_equal(*results)
