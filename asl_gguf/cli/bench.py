"""`asl-gguf bench`: speed and memory beside stock llama.cpp."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import OptionError
from .budgets import parse_fixed_budget
from .options import add_model_options, add_pruning_options, context_kwargs
from .streams import print_json


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="measure against stock llama.cpp", description="Side by side, in one run, with the same library."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")
    for name, budget, tokens, text in (
        ("prefill", "0.2", 2048, "seconds of a prefill, unpruned and pruned"),
        ("decode", "0.1", 4096, "tokens per second after a pruned prefill"),
        ("slices", "0.2", 4096, "seconds of one slice of a prefill, and what slicing costs"),
        ("host", "0.2", 2048, "CPU milliseconds of a chunk of a layer beside its arithmetic"),
        ("memory", "0.2", 8000, "peak resident memory of a prefill"),
        ("saved", "0.1", 4096, "a pruned prompt on disk: bytes, seconds to load"),
        ("turns", "0.1", 2048, "chats about a document: right answers and seconds by turn (--runs chats)"),
        ("agents", "0.2", 2000, "sessions that grow by tool output: right answers, CPU seconds and K/V by turn"),
    ):
        kind = kinds.add_parser(name, help=text)
        add_model_options(kind)
        add_pruning_options(kind, budget=budget, targets=False)
        kind.add_argument("--tokens", type=int, default=tokens, help="prompt length (default %(default)s)")
        kind.add_argument("--json", action="store_true", help="print one JSON object")
        kind.set_defaults(run=bench)
        if name != "memory":
            kind.add_argument("--runs", type=int, default=5, help="measured runs (default %(default)s)")
        if name == "turns":
            kind.add_argument("--turns", type=int, default=4, help="questions of a chat (default %(default)s)")
        if name == "agents":
            kind.add_argument("--turns", type=int, default=8, help="turns after the first (default %(default)s)")
            kind.add_argument(
                "--turn-tokens", type=int, default=500, help="tokens of a later turn (default %(default)s)"
            )
        if name == "decode":
            kind.add_argument("--decode", type=int, default=64, help="tokens to decode (default %(default)s)")
    kernels = kinds.add_parser("kernels", help="GF/s of one product for each weight type, and what asl_dequant does")
    kernels.add_argument("--shape", default="4096x512x4096", help="outputs x tokens x inputs (default %(default)s)")
    kernels.add_argument("--types", nargs="*", default=[], help="names such as q4_1 (default: all)")
    kernels.add_argument("-t", "--threads", type=int, default=1, help="threads (default %(default)s)")
    kernels.add_argument("--json", action="store_true", help="print one JSON object")
    kernels.set_defaults(run=bench_kernels)


def bench_kernels(args: argparse.Namespace) -> int:
    from ..bench import kernels

    try:
        n_out, n_tokens, n_in = (int(number) for number in args.shape.split("x"))
    except ValueError:
        raise OptionError(f"--shape: expected OUTPUTSxTOKENSxINPUTS such as 4096x512x4096, got {args.shape}") from None
    if args.threads < 1:
        raise OptionError(f"--threads: expected at least 1, got {args.threads}")
    rows = kernels.bench_kernels((n_out, n_tokens, n_in), args.threads, args.types)
    if args.json:
        print_json({"rule": kernels.rule(), "kernels": kernels.to_json(rows)})
    else:
        print("\n".join(kernels.lines(rows)))
    return 0


def bench(args: argparse.Namespace) -> int:
    from ..bench.agents import bench_agents
    from ..bench.decode import bench_decode
    from ..bench.host import bench_host
    from ..bench.memory import bench_memory
    from ..bench.prefill import bench_prefill
    from ..bench.saved import bench_saved
    from ..bench.slices import bench_slices
    from ..bench.turns import bench_turns
    from ..models.named import resolve
    from ..native.model import ContextOptions, Model

    budget = parse_fixed_budget(args.budget, "stock is compared with a known number of kept tokens")
    if args.tokens < 64:
        raise OptionError(f"--tokens: expected at least 64, got {args.tokens}")
    options = ContextOptions(**context_kwargs(args))
    shared = {"n_tokens": args.tokens, "budget": budget, "policy": args.policy, "dequant": args.dequant}
    if args.kind == "memory":
        result = bench_memory(args.model, options, **shared)
    elif args.kind == "turns":
        result = bench_turns(args.model, options, runs=args.runs, n_turns=args.turns, **shared)
    elif args.kind == "agents":
        sessions = {"n_turns": args.turns, "turn_tokens": args.turn_tokens}
        result = bench_agents(args.model, options, runs=args.runs, **sessions, **shared)
    elif args.kind == "saved":
        result = bench_saved(args.model, options, runs=args.runs, **shared)
    else:
        model = Model(str(resolve(args.model)), options)
        if args.kind == "prefill":
            result = bench_prefill(model, runs=args.runs, **shared)
        elif args.kind == "host":
            result = bench_host(model, runs=args.runs, **shared)
        elif args.kind == "slices":
            result = bench_slices(model, runs=args.runs, **shared)
        else:
            result = bench_decode(model, runs=args.runs, n_decode=args.decode, **shared)
        model.close()
    if args.json:
        print_json(result)
    else:
        print("\n".join(_lines(result)))
    return 0


def _lines(result: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    separator = " to " if prefix == "spreads." else ", "
    for name, value in result.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        elif name.find("_bytes") >= 0:
            lines.append(f"{prefix}{name:32} {value / 2**20:.1f} MiB")
        elif isinstance(value, list):
            lines.append(f"{prefix}{name:32} {separator.join(f'{item:.3f}' for item in value)}")
        else:
            lines.append(f"{prefix}{name:32} {value:.3f}" if isinstance(value, float) else f"{prefix}{name:32} {value}")
    return lines
