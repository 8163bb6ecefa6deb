"""`asl-gguf bench memory`: peak memory and CPU time of a process that prefills, ours and stock: resident, and on GPUs."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..budget.share import Budget, round_cells
from ..engine.prefill import prefill
from ..native.bindings import lib, llama_cpp
from ..native.devices import gpu_bytes_used
from ..native.model import ContextOptions, Model, stock_prefill, timed
from ..policies import make_policy
from .limit import layer_parameters
from .prefill import make_prompt

_GRAPHS = 64 * 2**20
"""graphs of chunks and work space"""
_TOKEN = 1024
"""of a token: cells, positions, scores"""


def _peak_bytes() -> int:
    if sys.platform == "linux":  # getrusage counts what the process was before exec, too: its parent
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Peak:
    """The most bytes that were in use, over those at the beginning."""

    def __init__(self, used: Callable[[], int | None]) -> None:
        self._used = used
        self._begin = used()
        self.bytes: int | None = None if self._begin is None else 0
        """None: there is nothing to look at"""

    def look(self) -> None:
        """Takes what is in use now."""
        if self._begin is not None and self.bytes is not None:
            self.bytes = max(self.bytes, (self._used() or 0) - self._begin)

    @contextmanager
    def watched(self, seconds: float = 0.005) -> Iterator[None]:
        """Looks so often, and at the end."""
        done = threading.Event()

        def go_on_looking() -> None:
            while self.bytes is not None and not done.wait(seconds):
                self.look()

        thread = threading.Thread(target=go_on_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.look()


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
    before, on_gpu = _peak_bytes(), Peak(gpu_bytes_used)
    with on_gpu.watched():
        kv_bytes, timing = timed(lambda: _prefill(model, tokens, budget, policy, dequant))
    measured = {"before": before, "peak": _peak_bytes(), "kv_peak": kv_bytes, "prompt_tokens": len(tokens)}
    expected = expected_bytes(model, len(tokens), kv_bytes)
    connection.send(json.dumps({**measured, "device": on_gpu.bytes, "cpu": timing.cpu, "expected": expected}))


def expected_bytes(model: Model, n_tokens: int, kv_bytes: int) -> int:
    """What a pruned prefill on CPUs with attention of our own takes at most, beside the model (docs/SPEED.md).

    Args:
        kv_bytes: of what is kept, and of one layer's slot for all tokens.
    """
    hidden = 4 * llama_cpp.llama_model_n_embd(model.handle) * n_tokens
    packed = 5 * round(layer_parameters(model.path, model.n_layer)) // 4  # a byte a weight, and units
    return int(kv_bytes + hidden + max(_GRAPHS, hidden // 4) + _TOKEN * n_tokens + packed)


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
        report = prefill(session, tokens, chosen, n_kept)
        return int(lib.context_kv_bytes(ctx)) + report.kv_bytes_prefill_peak


def measure(
    path: str, options: ContextOptions, n_tokens: int, budget: float | int | None, policy: str, dequant: str
) -> dict[str, Any]:
    """One prefill in a process of its own, stock without a budget: bytes before it, at its peak, expected, of K/V and on GPUs, and
    CPU seconds."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_child, args=(theirs, path, options, n_tokens, budget, policy, dequant))
    process.start()
    theirs.close()
    measured: dict[str, Any] = json.loads(ours.recv())
    process.join()
    return measured


def bench_memory(
    path: str, options: ContextOptions, *, n_tokens: int, budget: float | int, policy: str, dequant: str
) -> dict[str, Any]:
    """Peak resident bytes and CPU seconds of stock, of ours, and of ours with weights in another form; with a GPU, what they take
    there.

    Returns:
        Of each variant: peak_bytes of the process; prefill_bytes, what they grew by; kv_peak_bytes of that. Of the last one, which
        has attention of its own, expected_bytes: the most that prefill_bytes should be.
    """
    result: dict[str, Any] = {"n_ubatch": options.n_ubatch, "flash_attn": options.flash_attn}
    for name, share, mode in (("stock", None, "off"), ("pruned", budget, "off"), ("pruned_dequant", budget, dequant)):
        measured = measure(path, options, n_tokens, share, policy, mode)
        result["prompt_tokens"] = measured["prompt_tokens"]
        result[f"peak_bytes_{name}"] = measured["peak"]
        result[f"prefill_bytes_{name}"] = measured["peak"] - measured["before"]
        result[f"kv_peak_bytes_{name}"] = measured["kv_peak"]
        result[f"cpu_seconds_{name}"] = measured["cpu"]
        if mode != "off":
            result[f"expected_bytes_{name}"] = measured["expected"]
        if measured["device"] is not None:  # K/V, hidden states, work space; the weights were there before
            result[f"device_bytes_{name}"] = measured["device"]
    return result
