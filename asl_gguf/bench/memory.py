"""`asl-gguf bench memory`: peak resident memory of a process that prefills, ours and stock."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from typing import Any

from .. import engine
from ..budget import Budget, round_cells
from ..policies import make_policy
from .prefill import make_prompt
from .stock import ContextOptions, Model, stock_prefill


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
    before = _peak_bytes()
    kv_bytes = 0
    if budget is None:
        with model.context(round_cells(len(tokens))) as ctx:
            stock_prefill(ctx, tokens, options.n_ubatch)
            kv_bytes = _kv_bytes(ctx)
    else:
        chosen = make_policy(policy)
        n_kept = Budget(budget, min_prompt=0).kept(len(tokens), chosen.min_kept)
        n_cells = round_cells(n_kept)
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, len(tokens), dequant) as session:
            report = engine.prefill(session, tokens, chosen, n_kept)
            kv_bytes = _kv_bytes(ctx) + report.kv_bytes_prefill_peak
    connection.send(
        json.dumps({"before": before, "peak": _peak_bytes(), "kv_peak": kv_bytes, "prompt_tokens": len(tokens)})
    )


def _kv_bytes(ctx: Any) -> int:
    from .._native import lib

    return int(lib.context_kv_bytes(ctx))


def bench_memory(
    path: str, options: ContextOptions, *, n_tokens: int, budget: float | int, policy: str, dequant: str
) -> dict[str, Any]:
    """Peak resident bytes of stock, of ours, and of ours without expanded weights."""
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
    return result
