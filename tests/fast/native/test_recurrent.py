"""Kernels of layers that remember a state: beside the scalar one and the twins, and in a prefill."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

import tiny_kinds
from asl_gguf.native.bindings import lib
from harness import Model, Options
from tiny_kinds import loaded_kind
from twins import delta_nets, short_convolution
from weights import floats

KERNELS = ("scalar", "AVX2", "AVX-512")


def convolution(kernel: str, past: np.ndarray, x: np.ndarray, w: np.ndarray, n_threads: int = 1):
    n_channels, n_taps = w.shape
    joined = np.full((n_channels, n_taps - 1 + len(x)), np.nan, np.float32)
    y = np.full(x.shape, np.nan, np.float32)
    sizes = (n_channels, len(x), n_taps, n_threads)
    done = lib.short_convolution(kernel.encode(), floats(past), floats(x), floats(w), *sizes, floats(joined), floats(y))
    return (joined, y) if done else None


def nets(kernel: str, inputs: tuple[np.ndarray, ...], n_threads: int = 1):
    q, _, v, g, _, state = inputs
    n_tokens, n_head, n = v.shape
    new_state, y = np.full(state.shape, np.nan, np.float32), np.full(v.shape, np.nan, np.float32)
    sizes = (n, n_head, q.shape[1], g.shape[2], n_tokens, n_threads)
    done = lib.delta_nets(kernel.encode(), *map(floats, inputs), *sizes, floats(new_state), floats(y))
    return (new_state, y) if done else None


def draw_nets(seed: int, n: int, n_head: int, n_head_k: int, n_g: int, n_tokens: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)

    def numbers(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32)

    q, k, v = numbers(n_tokens, n_head_k, n), numbers(n_tokens, n_head_k, n), numbers(n_tokens, n_head, n)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g, beta = -np.abs(numbers(n_tokens, n_head, n_g)), rng.random((n_tokens, n_head), dtype=np.float32)
    return q, k, v, g, beta, numbers(n_head, n, n)


RUNS = nets("AVX2", draw_nets(0, 32, 1, 1, 1, 1)) is not None
needs_kernel = pytest.mark.skipif(not RUNS, reason="this processor has no kernel beside the scalar one")


@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("n_channels", "n_taps"), [(1, 2), (15, 4), (33, 3), (96, 4), (48, 1)])
def test_convolutions_are_the_twin(n_tokens, n_channels, n_taps):
    rng = np.random.default_rng(n_tokens * n_channels)
    past = rng.standard_normal((n_channels, n_taps - 1), dtype=np.float32)
    x = rng.standard_normal((n_tokens, n_channels), dtype=np.float32)
    w = rng.standard_normal((n_channels, n_taps), dtype=np.float32)
    expected, outputs = short_convolution(past, x, w)
    scalar = convolution("scalar", past, x, w)
    assert np.array_equal(scalar[0], expected)
    assert np.allclose(scalar[1], outputs, rtol=1e-6, atol=1e-5)
    for kernel in KERNELS:
        for n_threads in (1, 3):
            found = convolution(kernel, past, x, w, n_threads)
            assert found is None or all(map(np.array_equal, found, scalar)), (kernel, n_threads)


@pytest.mark.parametrize("n_tokens", [1, 2, 40])
@pytest.mark.parametrize(("n", "n_head", "n_head_k"), [(32, 1, 1), (64, 3, 1), (128, 4, 2)])
@pytest.mark.parametrize("of_each", [False, True])
def test_delta_nets_are_the_twin(n_tokens, n, n_head, n_head_k, of_each):
    inputs = draw_nets(n, n, n_head, n_head_k, n if of_each else 1, n_tokens)
    scalar = nets("scalar", inputs)
    for found, expected in zip(scalar, delta_nets(*inputs), strict=True):
        assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    for kernel in KERNELS:
        for n_threads in (1, 3):
            found = nets(kernel, inputs, n_threads)
            assert found is None or all(map(np.array_equal, found, scalar)), (kernel, n_threads)


def test_delta_nets_go_on_from_chunk_to_chunk():
    inputs = draw_nets(5, 64, 2, 2, 1, 50)
    state, whole = nets("scalar", inputs)
    between, first = nets("scalar", (*(array[:17] for array in inputs[:5]), inputs[5]))
    last, second = nets("scalar", (*(array[17:].copy() for array in inputs[:5]), between))
    assert np.array_equal(last, state)
    assert np.array_equal(np.concatenate([first, second]), whole)


def test_what_is_no_case():
    inputs = draw_nets(0, 32, 2, 1, 1, 3)
    assert nets("MMX", inputs) is None
    assert nets("scalar", draw_nets(0, 48, 2, 1, 1, 3)) is None
    assert nets("scalar", draw_nets(0, 32, 2, 1, 2, 3)) is None
    one = np.zeros((1, 1), np.float32)
    assert convolution("MMX", one, one, np.zeros((1, 2), np.float32)) is None
    assert convolution("scalar", one, one, np.zeros((1, 17), np.float32)) is None


def first_layer(model: Model, mode: str, n_threads: int = 1) -> np.ndarray:
    """What layer 0 puts out for 90 tokens, in chunks of 64."""
    with model.context(Options(n_ctx=256, n_batch=64, n_ubatch=64)) as ours:
        llama_cpp.llama_set_n_threads(ours.handle, n_threads, n_threads)
        session = ours.session()
        session.set_dequant(mode)
        session.begin([i * 7 % 128 for i in range(90)], 4)
        session.run(1, False)
        hidden = session.save_hidden(0, 90)
        session.abort()
    return hidden


@needs_kernel
@pytest.mark.parametrize("kind", ["delta-net", "kda"])
def test_a_layer_is_llama_cpps_to_rounding(tmp_path, monkeypatch, kind):
    """Weights of F32, which no mode rounds: what differs is the recurrence alone. They are so large that it is seen."""
    monkeypatch.setattr(tiny_kinds, "_DEVIATION", np.float32(1))
    with loaded_kind(tmp_path, kind) as model:
        stock, ours = first_layer(model, "off"), first_layer(model, "int16")
        assert np.array_equal(first_layer(model, "auto"), stock)  # no weight is quantised: llama.cpp's bits
        assert np.array_equal(first_layer(model, "int16", 2), ours)
    assert kind == "kda" or not np.array_equal(ours, stock)  # its states decay so fast that a token sees itself alone
    assert np.abs(ours - stock).max() < 1e-5 * np.abs(stock).max()
