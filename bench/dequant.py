"""What each mode of asl_dequant costs and how it rounds, against stock llama.cpp and the same weights in F32.

    python bench/dequant.py MODEL.gguf --tokens 1024 2048 --runs 5  # CPU seconds of prefills, nothing pruned
    python bench/dequant.py MODEL.gguf --tokens 512 --modes auto    # of the default alone
    python bench/dequant.py MODEL.gguf --tokens 512 --modes auto --policy fastkv:tsp_layer=9    # pruned to 0.2, too
    python bench/dequant.py MODEL.gguf --prompts 14                 # log-probabilities of the next token, beside F32's

One thread. The weights are loaded as llama.cpp loads them by default.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from asl_gguf.bench.prefill import make_prompt
from asl_gguf.budget.share import round_cells
from asl_gguf.engine.prefill import prefill
from asl_gguf.eval.demo_text import make_document
from asl_gguf.models.f32 import expanded
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.model import ContextOptions, Model, stock_prefill, timed
from asl_gguf.policies import Full, Policy, make_policy

MODES = ("off", "auto", "all", "int16", "int8")
KEPT = 0.2
F32 = 0
"""ggml type of K/V"""


def log_probabilities(model: Model, ctx: object) -> np.ndarray:
    """Of every token as the next one: f64 [n_vocab]."""
    values = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, -1), shape=(model.n_vocab,)).astype(np.float64)
    values -= values.max()
    return values - np.log(np.exp(values).sum())


def after_stock(model: Model, prompts: Sequence[list[int]]) -> list[np.ndarray]:
    result = []
    for tokens in prompts:
        with model.context(round_cells(len(tokens))) as ctx:
            stock_prefill(ctx, tokens, model.options.n_ubatch)
            result.append(log_probabilities(model, ctx))
    return result


def after_ours(model: Model, prompts: Sequence[list[int]], mode: str) -> list[np.ndarray]:
    result = []
    for tokens in prompts:
        n_cells = round_cells(len(tokens))
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, len(tokens), mode) as session:
            prefill(session, tokens, Full(), len(tokens))
            result.append(log_probabilities(model, ctx))
    return result


def compare_rounding(path: str, n_prompts: int, n_tokens: int, modes: Sequence[str]) -> None:
    model = Model(path, ContextOptions(n_threads=1))
    documents = [
        make_document(lambda text: len(model.tokenize(text)), n_tokens, seed=seed, depth=0.1 + 0.8 * seed / n_prompts)
        for seed in range(n_prompts)
    ]
    prompts = [model.tokenize(document.text)[:n_tokens] for document in documents]
    exact_model = Model(str(expanded(path)), ContextOptions(n_threads=1, kv_type=F32))
    exact = after_stock(exact_model, prompts)
    exact_model.close()
    print(f"{'':8} {'rms of log p':>14} {'mean KL':>10}   KL less stock's, with its standard error")
    stock: list[float] = []
    for name in ("stock", *modes):
        rows = after_stock(model, prompts) if name == "stock" else after_ours(model, prompts, name)
        rms = np.sqrt(np.mean([(row - best) ** 2 for row, best in zip(rows, exact, strict=True)]))
        kl = [float(np.sum(np.exp(best) * (best - row))) for row, best in zip(rows, exact, strict=True)]
        stock = stock or kl
        more = np.subtract(kl, stock)
        error = more.std() / len(more) ** 0.5
        print(f"{name:8} {rms:14.4f} {np.mean(kl):10.2e}   {more.mean():+.1e} +- {error:.1e}", flush=True)
    model.close()


def compare_speed(path: str, n_tokens: int, runs: int, modes: Sequence[str], policy: Policy | None) -> None:
    model = Model(path, ContextOptions(n_threads=1))
    tokens = make_prompt(model, n_tokens)
    n_cells = round_cells(len(tokens))
    n_kept = round(KEPT * len(tokens))
    variants = {"": (Full(), len(tokens))} | ({f", {KEPT}": (policy, n_kept)} if policy else {})
    seconds: dict[str, list[float]] = {}
    with model.context(n_cells) as stock, model.context(n_cells) as ctx:
        for _ in range(runs):
            _, timing = timed(lambda: stock_prefill(stock, tokens, model.options.n_ubatch))
            seconds.setdefault("stock", []).append(timing.cpu)
            for mode, (name, (rule, n)) in itertools.product(modes, variants.items()):
                with model.session(ctx, n_cells, len(tokens), mode) as session:
                    _, timing = timed(lambda session=session, rule=rule, n=n: prefill(session, tokens, rule, n))
                    seconds.setdefault(mode + name, []).append(timing.cpu)
    print(f"{len(tokens)} tokens, CPU seconds (least, median), to stock's least; pruned where a share is named")
    for name, values in seconds.items():
        ratio = min(values) / min(seconds["stock"])
        print(f"{name:10} {min(values):7.2f} {np.median(values):7.2f} {ratio:6.2f}", flush=True)
    model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="lengths of the prompts that are timed")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--policy", help=f"prefills pruned to {KEPT} are timed, too, by this policy")
    parser.add_argument("--prompts", type=int, default=0, help="how many prompts of 200 tokens are compared with F32")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: all")
    args = parser.parse_args()
    for n_tokens in args.tokens:
        compare_speed(args.model, n_tokens, args.runs, args.modes, make_policy(args.policy) if args.policy else None)
    if args.prompts:
        compare_rounding(args.model, args.prompts, 200, args.modes)


if __name__ == "__main__":
    main()
