"""`asl-gguf bench prefill`: layer by layer, unpruned and pruned, against stock llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from ..budget.share import Budget, round_cells
from ..engine.prefill import prefill
from ..eval.demo_text import make_document
from ..native.bindings import llama_cpp
from ..native.model import Model, Timing, stock_prefill, timed
from ..policies import Full, make_policy
from ..report import PrefillReport
from .kernels import peak
from .limit import full_limit, layer_parameters, linear_limit


def make_prompt(model: Model, n_tokens: int) -> list[int]:
    """Token ids of a document with a hidden fact and a question about it, exactly n_tokens."""
    document = make_document(lambda text: len(model.tokenize(text)), n_tokens)
    tokens = model.tokenize(
        f"<|im_start|>user\n{document.text}\n\n{document.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    # the document fills n_tokens by itself: what is too much goes from its middle
    excess = len(tokens) - n_tokens
    middle = n_tokens // 2
    return tokens[:middle] + tokens[middle + excess :] if excess > 0 else tokens


def bench_prefill(
    model: Model, *, n_tokens: int, budget: float | int, policy: str, dequant: str, runs: int
) -> dict[str, Any]:
    """Alternates stock, unpruned and pruned prefills of one prompt; medians and ratios over the runs.

    Args:
        dequant: "off": weights as stored alone; else this mode, int8 and int16, too.

    Returns:
        Seconds by variant (with the mode's name, unless weights are as stored), their ratios to stock run by run (wall
        and CPU: median, and [min, max] in spreads), the ratio of the fastest runs (best), seconds by phase of the last
        pruned run, the arithmetic limit of selection, 1e9 operations per CPU second where nothing is pruned, the CPU seconds
        that this machine's arithmetic takes at least and the share of that speed that was reached, and what was kept.
    """
    tokens = make_prompt(model, n_tokens)
    chosen = make_policy(policy)
    n_kept = Budget(budget, min_prompt=0).kept(len(tokens), chosen.min_kept)
    n_cells = round_cells(len(tokens))
    timings: dict[str, list[Timing]] = {}
    report: PrefillReport | None = None
    with model.context(n_cells) as stock_ctx, model.context(n_cells) as ctx:

        def measure(name: str, call: Callable[[], Any]) -> Any:
            result, timing = timed(call)
            timings.setdefault(name, []).append(timing)
            return result

        for _run in range(runs + 1):  # the first one warms up
            measure("stock", partial(stock_prefill, stock_ctx, tokens, model.options.n_ubatch))
            for mode in dict.fromkeys(("off",) if dequant == "off" else ("off", dequant, "int8", "int16")):
                suffix = "" if mode == "off" else f"_{mode}"
                with model.session(ctx, n_cells, len(tokens), mode) as session:
                    measure(f"unpruned{suffix}", partial(prefill, session, tokens, Full(), len(tokens)))
                    report = measure(f"pruned{suffix}", partial(prefill, session, tokens, chosen, n_kept))
    assert report is not None
    return _summary(model, report, {name: values[1:] for name, values in timings.items()}, runs)


def operations(model: Model, n_tokens: int) -> tuple[float, float]:
    """Operations of a prefill that prunes nothing: of products, 2 for each weight and token, and of causal attention."""
    n_embd_attn = llama_cpp.llama_model_n_embd(model.handle)
    products = 2 * layer_parameters(model.path, model.n_layer) * n_tokens
    return model.n_layer * products, model.n_layer * 2.0 * n_embd_attn * n_tokens * (n_tokens + 1)


def limits(products: float, attention: float) -> dict[str, float]:
    """CPU seconds that this machine's arithmetic takes at least: all in F32, and products of 8 bits beside attention in F32
    and in integers of 16 bits. Empty where its peaks are not known."""
    f32, int16, int8 = (1e9 * peak(n_bits) for n_bits in (32, 16, 8))
    if not (f32 and int16 and int8):
        return {}
    return {
        "f32": (products + attention) / f32,
        "int8": products / int8 + attention / f32,
        "int8_int16": products / int8 + attention / int16,
    }


def _summary(model: Model, report: PrefillReport, timings: dict[str, list[Timing]], runs: int) -> dict[str, Any]:
    shape = (model.n_layer, report.selection_layer, report.prompt_tokens, report.kept_tokens)
    products, attention = operations(model, report.prompt_tokens)
    unpruned = {name: min(t.cpu for t in values) for name, values in timings.items() if not name.startswith("pruned")}
    limit = limits(products, attention)
    result: dict[str, Any] = {
        "model": model.path.rsplit("/", 1)[-1],
        "prompt_tokens": report.prompt_tokens,
        "kept_tokens": report.kept_tokens,
        "selection_layer": report.selection_layer,
        "n_layer": model.n_layer,
        "runs": runs,
        "n_threads": model.options.n_threads,
        "n_ubatch": model.options.n_ubatch,
        "flash_attn": model.options.flash_attn,
        "ratio_limit": linear_limit(*shape),
        "ratio_limit_attention": full_limit(
            *shape,
            parameters=layer_parameters(model.path, model.n_layer),
            n_embd_attn=llama_cpp.llama_model_n_embd(model.handle),
            n_ubatch=model.options.n_ubatch,
        ),
        "gflops": {name: 1e-9 * (products + attention) / seconds for name, seconds in unpruned.items()},
        "limit_cpu_seconds": limit,
        "share_of_limit": {
            f"{name}.{kind}": seconds / unpruned[name] for name in unpruned for kind, seconds in limit.items()
        },
        "seconds": {name: median(t.wall for t in values) for name, values in timings.items()},
        "phases": report.seconds,
        "cpu_seconds": {name: median(t.cpu for t in values) for name, values in timings.items()},
        "spreads": {},
        "best": {},
    }
    for name, values in timings.items():
        if name == "stock":
            continue
        for clock in ("wall", "cpu"):
            ratios = [
                getattr(ours, clock) / getattr(stock, clock)
                for ours, stock in zip(values, timings["stock"], strict=True)
            ]
            key = f"ratio_{name}" + ("" if clock == "wall" else "_cpu")
            result[key] = median(ratios)
            result["spreads"][key] = [min(ratios), max(ratios)]
            # noise only ever adds: the fastest runs compare best on a busy machine
            result["best"][key] = min(getattr(t, clock) for t in values) / min(
                getattr(t, clock) for t in timings["stock"]
            )
    return result
