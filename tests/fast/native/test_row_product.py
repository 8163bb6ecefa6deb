"""Products of few rows: the kernel beside its scalar one and the twin, and decoding with it."""

from __future__ import annotations

from contextlib import closing

import llama_cpp
import numpy as np
import pytest

from asl_gguf.bench.kernels import type_names
from asl_gguf.native.bindings import lib
from asl_gguf.native.dequant import DEQUANT_MODES
from harness import Context, Model, Options, prompt
from twins import packed_product
from weights import draw, floats

TYPES = ("q4_1", "q5_0", "q5_1")
KERNEL = "AVX-512 VNNI"


def rows(kernel: str, name: str, weights: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    y = np.full((len(x), len(weights)), np.nan, np.float32)
    sizes = (len(weights), x.shape[1])
    done = lib.row_product(
        kernel.encode(), type_names()[name], weights.ctypes.data, *sizes, floats(x), len(x), floats(y)
    )
    return y if done else None


RUNS = rows(KERNEL, "q4_1", *draw(0, "q4_1", 1, 1, 32)) is not None
needs_kernel = pytest.mark.skipif(not RUNS, reason="this processor has no kernel beside the scalar one")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("n_in", [32, 64, 96, 128, 480, 512, 576, 1056, 4096])
def test_every_kernel_is_the_twin(name, n_in):
    """Rows that fill no group of four blocks, and no sixteen."""
    for n_rows, n_out in ((1, 1), (2, 7), (5, 33)):
        weights, x = draw(n_in, name, n_rows, n_out, n_in)
        scalar = rows("scalar", name, weights, x)
        twin, size = packed_product(name, weights, x, 8)
        assert np.all(np.abs(scalar - twin) <= 2e-6 * size)
        if RUNS:
            assert np.array_equal(rows(KERNEL, name, weights, x).view(np.uint32), scalar.view(np.uint32))


@pytest.mark.parametrize("name", TYPES)
def test_the_end_of_the_weights(name):
    """Nothing behind the last block is read into the sum: there are numbers that are none."""
    weights, x = draw(3, name, 1, 4, 96)
    expected = rows("scalar", name, weights, x)
    behind = np.full(weights.nbytes + 512, 255, np.uint8)
    behind[: weights.nbytes] = weights.ravel()
    for kernel in ("scalar", KERNEL) if RUNS else ("scalar",):
        assert np.array_equal(rows(kernel, name, behind[: weights.nbytes].reshape(weights.shape), x), expected)


def test_what_is_no_product():
    weights, x = draw(0, "q4_1", 1, 2, 64)
    assert rows("MMX", "q4_1", weights, x) is None
    assert rows("scalar", "q4_K", weights, x) is None
    assert rows("scalar", "q4_1", weights, x[:, :40].copy()) is None


def decoded(context: Context, tokens: list[int], mode: str | None, n_threads: int = 1) -> list[np.ndarray]:
    """Logits of each of ten tokens after a prompt that stock evaluated."""
    llama_cpp.llama_set_n_threads(context.handle, n_threads, n_threads)
    lib.context_set_dequant(context.handle, DEQUANT_MODES["off"])
    context.prefill(tokens[:-10])
    if mode is not None:
        lib.context_set_dequant(context.handle, DEQUANT_MODES[mode])
    return [context.decode([token]) for token in tokens[-10:]]


@needs_kernel
@pytest.mark.parametrize("mode", ["auto", "int8"])
def test_decoding(tiny_model, mode):
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model:
        with model.context(Options()) as context:
            expected = decoded(context, prompt(90), None)
            found = decoded(context, prompt(90), mode)
            threads = decoded(context, prompt(90), mode, 3)
            again = decoded(context, prompt(90), None)
        assert not np.array_equal(found, expected)
        assert np.sqrt(np.mean(np.subtract(found, expected) ** 2)) < 0.05 * np.std(expected)
        assert np.array_equal(threads, found)
        assert np.array_equal(again, expected)  # llama.cpp's kernels are back


@pytest.mark.parametrize("mode", ["off", "all", "int16"])
def test_modes_that_keep_llama_cpps_kernels(tiny_model, mode):
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model:
        with model.context(Options()) as context:
            assert np.array_equal(decoded(context, prompt(90), mode), decoded(context, prompt(90), None))
