"""Attention of our own: every kernel against the scalar one, bit for bit, and the scalar one against a twin in NumPy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from asl_gguf.native import bindings
from asl_gguf.native.bindings import lib
from twins import attention, rounded_attention

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_0": 2}
IN_FORCE = lib.attention_kernel_name().decode()
VNNI = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
ROUNDING = {"plain 16"} | ({"AVX-512"} if VNNI else set())
KERNELS = sorted({"plain 16", IN_FORCE} - {"scalar"})


@dataclass(frozen=True)
class Case:
    """A chunk: its sizes, and what its attention is like."""

    n_tokens: int = 7
    n_past: int = 66
    n_head: int = 6
    n_head_kv: int = 2
    n_embd: int = 64
    n_embd_v: int = 0
    """0: as K"""
    n_swa: int = 0
    n_queries: int = 3
    k: str = "F16"
    v: str = "F16"
    v_transposed: bool = False
    scale: float = 0.125
    cap: float = 0.0
    sinks: bool = False
    masked: bool = False
    weighted: bool = False
    n_threads: int = 1
    rounded: bool = False


CASES = [
    Case(),
    Case(n_tokens=1, n_past=0, n_queries=1, n_head=1, n_head_kv=1),
    Case(n_tokens=1, n_past=63, n_queries=1),
    Case(n_tokens=2, n_past=62, n_head=2, n_queries=2),  # ends with a tile
    Case(n_tokens=65, n_past=0, n_queries=65, weighted=True),
    Case(n_tokens=70, n_past=130, n_threads=3),
    Case(n_embd=128, n_head=8, n_head_kv=1),
    Case(n_embd=256, n_head=4, n_head_kv=4, v_transposed=True),
    Case(n_embd=80, n_embd_v=96, v_transposed=True),
    Case(n_embd=16, n_embd_v=8, n_head=5, n_head_kv=5),
    Case(n_embd=33, n_embd_v=47),  # no whole vectors
    Case(n_embd=192, n_embd_v=128, n_head=16, n_head_kv=2, n_tokens=3),
    Case(k="F32", v="F32"),
    Case(k="F32", v="F32", v_transposed=True),
    Case(k="Q8_0", v="Q8_0"),
    Case(k="Q4_0", v="Q8_0", n_tokens=11),
    Case(n_swa=1),
    Case(n_swa=20, n_past=100),
    Case(n_swa=70, n_past=200, n_tokens=90, sinks=True),
    Case(sinks=True, weighted=True),
    Case(cap=50.0),
    Case(cap=0.5, n_embd=128, n_swa=30, sinks=True),
    Case(masked=True),
    Case(masked=True, cap=5.0, n_tokens=70, n_threads=2),
    Case(scale=30.0),  # weights that underflow
]


def stored(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random values as a type stores them, and what they are in F32."""
    values = rng.standard_normal(shape).astype(np.float32)
    if name in ("F32", "F16"):
        data = values.astype(np.float32 if name == "F32" else np.float16)
        return data, data.astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    data = gguf.quants.quantize(values, kind)
    return data, gguf.quants.dequantize(data, kind).reshape(shape)


class Drawn:
    """The numbers of a case."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.case = case
        n_cells, n_embd_v = case.n_past + case.n_tokens, case.n_embd_v or case.n_embd
        self.q = rng.standard_normal((case.n_tokens, case.n_head, case.n_embd)).astype(np.float32)
        self.k_stored, self.k = stored(rng, case.k, (n_cells, case.n_head_kv, case.n_embd))
        self.v_stored, self.v = stored(rng, case.v, (n_cells, case.n_head_kv, n_embd_v))
        if case.v_transposed:
            self.v_stored = np.ascontiguousarray(self.v_stored.transpose(1, 2, 0))
        self.sinks = rng.standard_normal(case.n_head).astype(np.float32) if case.sinks else None
        self.weights = rng.uniform(0.1, 1, case.n_queries).astype(np.float32) if case.weighted else None
        self.mask = None
        if case.masked:
            self.mask = np.where(rng.random((case.n_tokens, n_cells)) < 0.4, 0, -np.inf).astype(np.float32)
            self.mask[:, -1] = 0
            self.mask[0] = -np.inf  # attends to nothing

    def run(self, kernel: str) -> tuple[np.ndarray, np.ndarray]:
        """y, and the scores [n_head_kv, n_cells]."""
        case, n_cells = self.case, len(self.k)
        y = np.full((case.n_tokens, case.n_head, self.v.shape[-1]), np.nan, np.float32)
        scores = np.full((case.n_head_kv, n_cells), np.nan, np.float32)
        arrays = {"q": self.q, "k": self.k_stored, "v": self.v_stored}
        arrays |= {"sinks": self.sinks, "mask": self.mask, "weights": self.weights}
        given = bindings.attention_case(
            *(case.n_tokens, case.n_past, case.n_head, case.n_head_kv, case.n_embd, self.v.shape[-1], case.n_swa),
            *(case.n_queries, TYPES[case.k], TYPES[case.v], case.n_threads, case.v_transposed, case.rounded),
            *(case.scale, case.cap, case.scale / case.cap if case.cap else 1.0),
            *(None if array is None else array.ctypes.data for array in arrays.values()),
        )
        floats = ctypes.POINTER(ctypes.c_float)
        pointers = (y.ctypes.data_as(floats), scores.ctypes.data_as(floats))
        assert lib.attention_compute(kernel.encode(), ctypes.byref(given), *pointers)
        return y, scores

    def options(self) -> dict[str, Any]:
        """Of the twins."""
        case = self.case
        cap = {"cap": case.cap, "cap_scale": case.scale / case.cap} if case.cap else {}
        return {"scale": case.scale, "n_swa": case.n_swa, "sinks": self.sinks, "mask": self.mask, **cap}

    def rounded_twin(self) -> np.ndarray:
        return rounded_attention(self.q, self.k, self.v, **self.options())

    def twin(self) -> tuple[np.ndarray, np.ndarray]:
        case = self.case
        with np.errstate(invalid="ignore"):
            y, weights = attention(self.q, self.k, self.v, **self.options())
        if case.masked:  # -inf - -inf in the twin
            y[0], weights[0] = 0, 0
        window = weights[case.n_tokens - case.n_queries :]
        if self.weights is not None:
            window = window * self.weights[:, None, None]
        return y, window.reshape(-1, case.n_head_kv, case.n_head // case.n_head_kv, len(self.k)).sum(axis=(0, 2))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_scalar_kernel_is_the_twin(case):
    drawn = Drawn(case)
    y, scores = drawn.run("scalar")
    expected, expected_scores = drawn.twin()
    # with logits as large as 100 their last bit is 1e-5, and that goes into the exponential
    tolerance = 3e-6 * max(1.0, case.scale * 8)
    assert np.allclose(y, expected, rtol=0, atol=tolerance)
    assert np.allclose(scores, expected_scores, rtol=tolerance * 10, atol=tolerance)
    assert case.masked or np.any(y)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_scalar_kernel_is_the_rounded_twin(case, seed):
    """But for integers that lie at the edge of two: of those, and of exponentials, the last bit."""
    drawn = Drawn(replace(case, rounded=True), seed)
    y, scores = drawn.run("scalar")
    expected = drawn.rounded_twin()
    tolerance = max(1.0, case.scale * 8)
    assert np.allclose(y, expected, rtol=0, atol=1e-4 * tolerance)
    assert np.sqrt(np.mean((y - expected) ** 2)) < 5e-6 * tolerance
    exact, expected_scores = drawn.twin()
    assert np.allclose(y, exact, rtol=0, atol=8e-4 * tolerance)
    assert np.sqrt(np.mean((y - exact) ** 2)) < 1.5e-4 * tolerance
    # scores are of logits that nothing rounds, over the sums of rounded ones
    assert np.allclose(scores, expected_scores, rtol=2e-3 * tolerance, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", [*CASES, *(replace(case, rounded=True) for case in CASES)], ids=str)
def test_every_kernel_gives_the_same_bits(case, kernel):
    if case.rounded and kernel not in ROUNDING:
        pytest.skip("rounds nothing")
    drawn = Drawn(case, seed=1)
    for got, expected in zip(drawn.run(kernel), drawn.run("scalar"), strict=True):
        assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_the_kernel_of_this_processor_is_in_force():
    """A kernel that gave other bits than the scalar one would be left out without a word."""
    with open("/proc/cpuinfo") as file:
        flags = next(line for line in file if line.startswith("flags")).split()
    expected = "AVX-512" if "avx512dq" in flags else "AVX2" if "avx2" in flags else "scalar"
    assert expected == IN_FORCE


@pytest.mark.parametrize("rounded", [False, True])
def test_chunks_change_no_bit(rounded):
    """The same tokens in chunks of 50, 1 and 79: each row is summed over tiles that begin at fixed cells, and K and V
    are rounded by the row."""
    kernel = "plain 16" if rounded else IN_FORCE
    whole = Drawn(Case(n_tokens=130, n_past=0, n_queries=130, rounded=rounded))
    y, _ = whole.run(kernel)
    for begin, end in ((0, 50), (50, 51), (51, 130)):
        part = Drawn(replace(whole.case, n_tokens=end - begin, n_past=begin, n_queries=1))
        part.q, part.k_stored, part.v_stored = whole.q[begin:end].copy(), whole.k_stored[:end], whole.v_stored[:end]
        assert np.array_equal(part.run(kernel)[0], y[begin:end])


@pytest.mark.parametrize("rounded", [False, True])
def test_cells_that_hold_no_number(rounded):
    """What a token may not attend to does not reach it, beyond its tile; a key that is no number makes its row none."""
    drawn = Drawn(Case(n_tokens=70, n_past=0, n_queries=1, rounded=rounded))
    drawn.k_stored[64:], drawn.v_stored[64:] = np.nan, np.nan
    y, _ = drawn.run("plain 16" if rounded else IN_FORCE)
    assert np.isfinite(y[:64]).all() and np.isnan(y[64:]).all()
    assert np.array_equal(np.isnan(y), np.isnan(drawn.run("scalar")[0]))


def test_what_is_no_case():
    drawn = Drawn(Case())
    given = bindings.attention_case(7, 66, 6, 4, 64, 64, 0, 3, 1, 1, 1, False, False, 0.1, 0.0, 1.0)
    assert not lib.attention_compute(b"scalar", ctypes.byref(given), None, None)  # 6 heads, 4 of K/V
    assert drawn.run("scalar")[0].any()
    given.n_head_kv = 2
    assert not lib.attention_compute(b"MMX", ctypes.byref(given), None, None)
    given.type_k = 999
    assert not lib.attention_compute(b"scalar", ctypes.byref(given), None, None)


@pytest.mark.long
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_cells_beyond_2_gib(kernel, rounded, transposed):
    """A window near the end of many cells, whose pages before it are never touched, against the same window near the start."""
    if rounded and kernel not in ROUNDING:
        pytest.skip("rounds nothing")
    near = Drawn(Case(n_tokens=7, n_past=100, n_swa=30, n_queries=0, v_transposed=transposed, rounded=rounded))
    n_more = 64 * 140_000  # whole tiles
    far = Drawn(near.case)
    far.case = replace(near.case, n_past=near.case.n_past + n_more)
    n_cells = n_more + len(near.k)
    far.q = near.q
    far.k_stored = np.zeros((n_cells, *near.k_stored.shape[1:]), np.float16)
    far.k_stored[n_more:] = near.k_stored
    shape = (*near.v_stored.shape[:-1], n_cells) if transposed else (n_cells, *near.v_stored.shape[1:])
    far.v_stored = np.zeros(shape, np.float16)
    at = (..., slice(n_more, None)) if transposed else slice(n_more, None)
    far.v_stored[at] = near.v_stored
    assert min(far.k_stored.nbytes, far.v_stored.nbytes) > 2**31
    assert np.array_equal(far.run(kernel)[0], near.run(kernel)[0])
