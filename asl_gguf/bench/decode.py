"""`asl-gguf bench decode`: decoding after a pruned prefill against a stock context with as many tokens."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from ..budget.share import Budget, round_cells
from ..engine.prefill import prefill
from ..native.dequant import set_decoding
from ..native.model import Model, decode, stock_prefill, timed
from ..policies import make_policy
from .prefill import make_prompt


def _decode_each(ctx: Any, tokens: list[int]) -> None:
    for token in tokens:
        decode(ctx, [token])


def bench_decode(
    model: Model, *, n_tokens: int, budget: float | int, policy: str, dequant: str, runs: int, n_decode: int
) -> dict[str, Any]:
    """Decodes the same tokens after three prefills: pruned, stock with the kept number of tokens, stock with all.

    Returns:
        Tokens per second of each (median over runs), and the ratios run by run.
    """
    tokens = make_prompt(model, n_tokens)
    chosen = make_policy(policy)
    n_kept = Budget(budget, min_prompt=0).kept(len(tokens), chosen.min_kept)
    continuation = tokens[:n_decode]
    small, large = round_cells(n_kept + n_decode), round_cells(len(tokens) + n_decode)
    speeds: dict[str, list[float]] = {"pruned": [], "stock_kept": [], "stock_full": []}
    with model.context(small) as pruned, model.context(small) as kept, model.context(large) as full:
        set_decoding(pruned, dequant)
        with model.session(pruned, small, len(tokens) + n_decode, dequant) as session:
            for _run in range(runs + 1):  # the first one warms up
                report = prefill(session, tokens, chosen, n_kept)
                stock_prefill(kept, tokens[-n_kept:], model.options.n_ubatch)
                stock_prefill(full, tokens, model.options.n_ubatch)
                for name, ctx in (("pruned", pruned), ("stock_kept", kept), ("stock_full", full)):
                    seconds = timed(partial(_decode_each, ctx, continuation))[1].wall
                    speeds[name].append(len(continuation) / seconds)
    measured = {name: values[1:] for name, values in speeds.items()}
    result: dict[str, Any] = {
        "model": model.path.rsplit("/", 1)[-1],
        "prompt_tokens": len(tokens),
        "kept_tokens": n_kept,
        "selection_layer": report.selection_layer,
        "decoded_tokens": len(continuation),
        "runs": runs,
        "n_threads": model.options.n_threads,
        "flash_attn": model.options.flash_attn,
        "tokens_per_second": {name: median(values) for name, values in measured.items()},
        "spreads": {},
    }
    for name in ("stock_kept", "stock_full"):
        ratios = [ours / stock for ours, stock in zip(measured["pruned"], measured[name], strict=True)]
        result[f"ratio_to_{name}"] = median(ratios)
        result["spreads"][f"ratio_to_{name}"] = [min(ratios), max(ratios)]
    return result
