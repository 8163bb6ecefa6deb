"""`asl-gguf eval` and `asl-gguf report`: what pruning costs in answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .options import add_model_options

_TASKS = "niah_prose,multikey,keyvalue,multivalue,passkey,tracking"
_POLICIES = "asl-span,asl,asl-two-pass,fastkv:window=32,gemfilter,snapkv,pyramidinfer,streaming_llm"


def add_parser(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval", help="answers of policies and budgets beside the full cache", description=__doc__
    )
    add_model_options(evaluate)
    evaluate.add_argument("--out", type=Path, required=True, help="folder for results; what it holds is not repeated")
    evaluate.add_argument("--tasks", default=_TASKS, help="names, with commas (default %(default)s)")
    evaluate.add_argument("--lengths", default="1024,2048", help="prompt tokens, with commas (default %(default)s)")
    evaluate.add_argument("--budgets", default="0.05,0.1,0.2,0.4", help="with commas (default %(default)s)")
    evaluate.add_argument(
        "--policies", default=_POLICIES, help="name or name:parameter=value:..., with commas (default %(default)s)"
    )
    evaluate.add_argument("--samples", type=int, default=20, help="examples of each task (default %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0, help="0: development, 1: reporting (default %(default)s)")
    evaluate.add_argument("--dequant", choices=["auto", "off", "all"], default="auto")
    evaluate.set_defaults(run=run_eval)
    report = commands.add_parser("report", help="tables of `asl-gguf eval`", description="Prints Markdown tables.")
    report.add_argument("folders", type=Path, nargs="+", help="--out of asl-gguf eval")
    report.set_defaults(run=run_report)


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{name}: expected numbers with commas, got {text!r}") from None


def _budget(text: str) -> float | int:
    return float(text) if "." in text else int(text)


def run_eval(args: argparse.Namespace) -> int:
    from ..bench.stock import ContextOptions, Model
    from ..eval.runner import Plan, Results, run
    from .options import KV_TYPES

    plan = Plan(
        tasks=tuple(args.tasks.split(",")),
        lengths=_numbers("--lengths", args.lengths, int),
        budgets=_numbers("--budgets", args.budgets, _budget),
        policies=tuple(args.policies.split(",")),
        samples=args.samples,
        seed=args.seed,
    )
    options = ContextOptions(args.threads or 2, args.n_ubatch, args.flash_attn, KV_TYPES[args.kv_type], args.gpu_layers)
    model = Model(args.model, options)
    try:
        run(model, plan, Results(args.out), dequant=args.dequant, progress=_report)
    finally:
        model.close()
    return 0


def _report(done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done) if done else 0.0
    print(f"\r{done} of {total} examples, {seconds:.0f} s, about {left:.0f} s left ", end="", file=sys.stderr)
    if done == total:
        print(file=sys.stderr)


def run_report(args: argparse.Namespace) -> int:
    from ..eval.runner import read_rows
    from ..eval.summary import document

    rows = [row for folder in args.folders for row in read_rows(folder / "results.jsonl")]
    if not rows:
        raise OptionError(f"expected results of asl-gguf eval in {', '.join(map(str, args.folders))}, found none")
    print(document(rows))
    return 0
