"""What /metrics says about pruning: sums over all prompts, and the last one."""

from __future__ import annotations

import threading
from typing import Any

_COUNTERS = {
    "prompts_total": "Prompts that found a slot",
    "pruned_prompts_total": "Prompts of which K/V were dropped",
    "prompt_tokens_total": "Tokens of prompts",
    "kept_tokens_total": "Tokens of prompts whose K/V were kept",
    "pruned_tokens_total": "Tokens of prompts whose K/V were dropped",
    "cached_tokens_total": "Tokens of prompts that were in their slot already",
    "prefill_seconds_total": "Seconds of work on prompts that the engine ran",
    "kv_bytes_total": "Bytes of K/V of kept tokens",
    "kv_bytes_full_total": "Bytes of K/V of all tokens",
    "refused_prompts_total": "Prompts that were refused: too long, wrong options, no memory",
    "waited_slices_total": "Slices in which a prompt waited for memory",
}
_GAUGES = {
    "selection_layer": "Layer at which the last pruned prompt was selected",
    "kept_share": "Share of its tokens that the last prompt kept",
    "kv_bytes": "Bytes of K/V of the last prompt's kept tokens",
    "longest_slice_cpu_seconds": "CPU time that the server's own thread spent at most between two turns of other slots, for prompts",
}


class Totals:
    """Sums. Any thread may read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = dict.fromkeys((*_COUNTERS, *_GAUGES), 0)

    def add(self, report: dict[str, Any]) -> None:
        """A prompt's report, as answers carry it."""
        n_tokens, n_kept = report["prompt_tokens"], report["kept_tokens"]
        more = {
            "prompts_total": 1,
            "pruned_prompts_total": int(report["pruned"]),
            "prompt_tokens_total": n_tokens,
            "kept_tokens_total": n_kept,
            "pruned_tokens_total": n_tokens - n_kept,
            "cached_tokens_total": report["cached_tokens"],
            "prefill_seconds_total": report["seconds"],
            "kv_bytes_total": report["kv_bytes"],
            "kv_bytes_full_total": report["kv_bytes_full"],
        }
        with self._lock:
            for name, value in more.items():
                self._values[name] += value
            self._values["kept_share"] = n_kept / max(n_tokens, 1)
            self._values["kv_bytes"] = report["kv_bytes"]
            if report["selection_layer"] is not None:
                self._values["selection_layer"] = report["selection_layer"]

    def count(self, name: str) -> None:
        """One more of a counter."""
        with self._lock:
            self._values[name] += 1

    def slice(self, cpu_seconds: float) -> None:
        """A slice has ended, or the plan of a prompt."""
        name = "longest_slice_cpu_seconds"
        with self._lock:
            self._values[name] = max(self._values[name], cpu_seconds)

    def prometheus(self) -> str:
        """The totals as text for /metrics."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for kind, names in (("counter", _COUNTERS), ("gauge", _GAUGES)):
            for name, text in names.items():
                lines += [f"# HELP asl:{name} {text}", f"# TYPE asl:{name} {kind}", f"asl:{name} {values[name]:.10g}"]
        return "\n".join(lines) + "\n"
