"""Random quantised weights, and their products by a kernel of ours."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np

from asl_gguf.bench.kernels import type_names
from asl_gguf.native.bindings import lib


def places_of_scales(name: str) -> list[int]:
    """Bytes of a block where numbers of f16 begin."""
    two = {"q2_K": [80, 82], "q4_1": [0, 2], "q5_1": [0, 2], "q4_K": [0, 2], "q5_K": [0, 2]}
    return {**two, "q6_K": [208], "mxfp4": []}.get(name, [0])


def draw_weights(rng: np.random.Generator, name: str, n_out: int, n_in: int) -> np.ndarray:
    """Random bytes, but for scales, which are numbers: f16 at the places where blocks of the type have them."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    n_block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (n_out, n_in // n_block, n_bytes), dtype=np.uint8)
    if name == "mxfp4":
        blocks[..., 0] = rng.integers(117, 123, blocks.shape[:2])  # an exponent
    for place in places_of_scales(name):
        scales = rng.uniform(-0.02, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(n_out, -1)


def floats(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def product(
    kernel: str, name: str, weights: np.ndarray, x: np.ndarray, bits: int, form: tuple[int, int] = (0, 0)
) -> np.ndarray:
    n_tokens, n_in = x.shape
    y = np.full((n_tokens, len(weights)), np.nan, np.float32)
    arguments = (len(weights), n_in, bits, floats(x), n_tokens, floats(y))
    assert lib.packed_product(kernel.encode(), type_names()[name], weights.ctypes.data, *form, *arguments)
    return y


def expert_product(
    kernel: str,
    name: str,
    weights: np.ndarray,
    ids: np.ndarray,
    x: np.ndarray,
    bits: int,
    *,
    form: tuple[int, int] = (0, 0),
    n_threads: int = 1,
) -> np.ndarray:
    """As twins.expert_product, by a kernel of ours."""
    n_expert, n_out, _ = weights.shape
    n_tokens, n_acts, n_in = x.shape
    y = np.full((*ids.shape, n_out), np.nan, np.float32)
    chosen = ids.astype(np.int32).ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    arguments = (n_expert, n_out, n_in, bits, chosen, ids.shape[1], floats(x), n_acts, n_tokens, n_threads, floats(y))
    assert lib.packed_experts(kernel.encode(), type_names()[name], weights.ctypes.data, *form, *arguments)
    return y


def draw(seed: int, name: str, n_tokens: int, n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, n_in)).astype(np.float32)
    x *= np.exp(rng.standard_normal((1, n_in))).astype(np.float32)  # some inputs are much larger than others
    return draw_weights(rng, name, n_out, n_in), x
