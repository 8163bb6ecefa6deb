"""`asl-gguf bench host`: what a chunk of a layer takes beside its arithmetic, with and without the reuse of graphs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from ..budget.share import Budget, round_cells
from ..engine.prefill import prefill
from ..native.model import Model
from ..policies import Full, make_policy
from .prefill import make_prompt

_DISABLE = "LLAMA_GRAPH_REUSE_DISABLE"
"""llama.cpp's own switch, read when a context is made"""


def bench_host(
    model: Model, *, n_tokens: int, budget: float | int, policy: str, dequant: str, runs: int
) -> dict[str, Any]:
    """CPU milliseconds of the calling thread for a chunk of a layer: graphs, plans of memory, inputs; not computing, nor
    packing weights. Unpruned and pruned prefills, whose graphs are built for each layer again (`rebuilt`) or once, alternate.
    """
    tokens = make_prompt(model, n_tokens)
    chosen = make_policy(policy)
    n_kept = Budget(budget, min_prompt=0).kept(len(tokens), chosen.min_kept)
    n_cells = round_cells(len(tokens))
    found: dict[str, list[float]] = {}
    result: dict[str, Any] = {
        "prompt_tokens": len(tokens),
        "chunk_tokens": model.options.n_ubatch,
        "n_layer": model.n_layer,
    }
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, len(tokens), dequant) as session:
        for run in range(runs + 1):
            for kind, what, kept in (("unpruned", Full(), len(tokens)), ("pruned", chosen, n_kept)):
                for suffix in ("_rebuilt", ""):
                    with _graphs_reused(not suffix):
                        prefill(session, tokens, what, kept)
                    info = session.info()
                    if run:  # the first one meets pages that are not there yet
                        found.setdefault(f"host_ms_{kind}{suffix}", []).append(1e-3 * info.host_us / info.n_parts)
                    result[f"parts_{kind}"] = info.n_parts
    result |= {name: median(values) for name, values in found.items()}
    result["spreads"] = {name: [min(values), max(values)] for name, values in found.items()}
    return result


@contextmanager
def _graphs_reused(reused: bool) -> Iterator[None]:
    """Contexts that are made meanwhile reuse graphs, or do not."""
    before = os.environ.get(_DISABLE)
    os.environ[_DISABLE] = "0" if reused else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DISABLE]
        else:
            os.environ[_DISABLE] = before
