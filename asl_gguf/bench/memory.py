"""`asl-gguf bench memory`: peak memory of a process that prefills, ours and stock: resident, and on GPUs."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import engine
from .._native import lib, llama_cpp
from ..budget import Budget, round_cells
from ..policies import make_policy
from .prefill import make_prompt
from .stock import ContextOptions, Model, stock_prefill


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_GPU = 1  # ggml_backend_dev_type


class DeviceMemory:
    """Bytes that processes have on the first GPU. Memory that other programs take and free shows as well."""

    def __init__(self) -> None:
        ggml = llama_cpp.llama_cpp._lib
        ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
        ggml.ggml_backend_dev_memory.restype = None
        ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
        self._read = ggml.ggml_backend_dev_memory
        self._device = ggml.ggml_backend_dev_by_type(_GPU)
        self.peak_bytes = 0

    @property
    def exists(self) -> bool:
        """Whether ggml found a GPU."""
        return bool(self._device)

    def used(self) -> int:
        """Bytes in use now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if self.exists:
            self._read(self._device, ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sets peak_bytes to the most that were in use, over those at the beginning; looks every 5 ms."""
        begin, done = self.used(), threading.Event()

        def look() -> None:
            while not done.wait(0.005):
                self.peak_bytes = max(self.peak_bytes, self.used() - begin)

        thread = threading.Thread(target=look, daemon=True)
        self.peak_bytes = 0
        if self.exists:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if self.exists:
                thread.join()


def _child(
    connection: Any,
    path: str,
    options: ContextOptions,
    n_tokens: int,
    budget: float | int | None,
    policy: str,
    dequant: str,
) -> None:
    """One prefill in a process of its own, because a peak never falls."""
    model = Model(path, options)
    tokens = make_prompt(model, n_tokens)
    before, device = _peak_bytes(), DeviceMemory()
    with device.watched():
        kv_bytes = _prefill(model, tokens, budget, policy, dequant)
    measured = {"before": before, "peak": _peak_bytes(), "kv_peak": kv_bytes, "prompt_tokens": len(tokens)}
    connection.send(json.dumps({**measured, "device": device.peak_bytes if device.exists else None}))


def _prefill(model: Model, tokens: list[int], budget: float | int | None, policy: str, dequant: str) -> int:
    """One prefill, stock without a budget; returns the most bytes that KV buffers took."""
    if budget is None:
        with model.context(round_cells(len(tokens))) as ctx:
            stock_prefill(ctx, tokens, model.options.n_ubatch)
            return int(lib.context_kv_bytes(ctx))
    chosen = make_policy(policy)
    n_kept = Budget(budget, min_prompt=0).kept(len(tokens), chosen.min_kept)
    n_cells = round_cells(n_kept)
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, len(tokens), dequant) as session:
        report = engine.prefill(session, tokens, chosen, n_kept)
        return int(lib.context_kv_bytes(ctx)) + report.kv_bytes_prefill_peak


def bench_memory(
    path: str, options: ContextOptions, *, n_tokens: int, budget: float | int, policy: str, dequant: str
) -> dict[str, Any]:
    """Peak resident bytes of stock, of ours, and of ours without expanded weights; with a GPU, what they take there."""
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"n_ubatch": options.n_ubatch, "flash_attn": options.flash_attn}
    for name, share, mode in (("stock", None, "off"), ("pruned", budget, "off"), ("pruned_dequant", budget, dequant)):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_child, args=(theirs, path, options, n_tokens, share, policy, mode))
        process.start()
        theirs.close()
        measured = json.loads(ours.recv())
        process.join()
        result["prompt_tokens"] = measured["prompt_tokens"]
        result[f"peak_bytes_{name}"] = measured["peak"]
        result[f"prefill_bytes_{name}"] = measured["peak"] - measured["before"]
        result[f"kv_peak_bytes_{name}"] = measured["kv_peak"]
        if measured["device"] is not None:  # K/V, hidden states, work space; the weights were there before
            result[f"device_bytes_{name}"] = measured["device"]
    return result
