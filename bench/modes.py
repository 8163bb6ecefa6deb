"""Families of questions under each mode of asl_dequant, beside the same weights in F32 (llama.cpp's products, F32 K/V).

    python bench/modes.py MODEL.gguf --out FOLDER --samples 10   # prints the tables; goes on where it was stopped
    python bench/modes.py MODEL.gguf --out FOLDER --samples 0    # the tables of what is there

Every mode answers a prompt before the next prompt comes, so that what is there when it is stopped is of all modes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import numpy as np

from asl_gguf.eval.chat_format import chat_format
from asl_gguf.eval.results import FULL, Results, Row, read_rows
from asl_gguf.eval.runner import Plan, run
from asl_gguf.eval.statistics import group
from asl_gguf.eval.suites import FAMILIES
from asl_gguf.eval.tasks import REPORT_SEED
from asl_gguf.models.f32 import expanded
from asl_gguf.models.named import resolve
from asl_gguf.native.model import ContextOptions, Model

EXACT = "F32"
MODES = ("off", "all", "int16", "int8", "auto")
_F32 = 0
"""ggml type of K/V"""


def answer(path: str, out: Path, plan: Plan, modes: Sequence[str]) -> None:
    """Adds what the folder lacks of the plan, under each mode."""
    models = {
        EXACT: Model(str(expanded(path)), ContextOptions(n_threads=1, kv_type=_F32)),
        **dict.fromkeys(modes, Model(path, ContextOptions(n_threads=1))),
    }
    results = {name: Results(out / name) for name in models}
    for n in range(1, plan.samples + 1):
        for name, model in models.items():
            part = Plan(**{**asdict(plan), "samples": n})
            dequant = "off" if name == EXACT else name
            run(model, part, results[name], dequant=dequant, chat=chat_format(model, "auto"))
        print(f"{n} of {plan.samples} prompts of each family", flush=True)
    for model in {id(model): model for model in models.values()}.values():
        model.close()


def _cell(pairs: Sequence[tuple[Row, Row]]) -> str:
    """Of pairs (a mode's answer, the exact one): score, and nats of the right answer more, with the standard error."""
    more = [row["nll"] - exact["nll"] for row, exact in pairs]
    error = np.std(more, ddof=1) / len(more) ** 0.5 if len(more) > 1 else float("nan")
    return f"{mean(row['score'] for row, _ in pairs):.2f}, {mean(more):+.3f} ({error:.3f})"


def table(exact: Sequence[Row], others: dict[str, list[Row]]) -> str:
    """Markdown of one policy's answers, of the prompts that every mode has answered; empty if there are none."""
    keyed = {name: {(row["task"], row["index"]): row for row in rows} for name, rows in others.items()}
    rows = [row for row in exact if all((row["task"], row["index"]) in found for found in keyed.values())]
    if not rows:
        return ""
    lines = [f"| family | prompts | {EXACT} | {' | '.join(keyed)} |", "|---" * (3 + len(keyed)) + "|"]
    for name, of_task in [*((task, found) for (task,), found in group(rows, "task").items()), ("all", rows)]:
        cells = [f"{mean(row['score'] for row in of_task):.2f}, {mean(row['nll'] for row in of_task):.3f}"]
        cells += [_cell([(found[row["task"], row["index"]], row) for row in of_task]) for found in keyed.values()]
        lines.append(f"| {name} | {len(of_task)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def print_tables(out: Path, modes: Sequence[str]) -> None:
    rows = {name: read_rows(out / name / "results.jsonl") for name in (EXACT, *modes)}
    of_policy = {name: group(found, "policy", "budget", "length") for name, found in rows.items()}
    for key in of_policy[EXACT]:
        policy, budget, length = key
        title = "full cache" if policy == FULL else f"{policy}, {budget}"
        print(
            f"\n{title}, {length} tokens: score, and nats of the right answer; of the modes: more than {EXACT}'s (error)\n"
        )
        print(table(of_policy[EXACT][key], {name: of_policy[name].get(key, []) for name in modes}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, one below it for each mode")
    parser.add_argument("--samples", type=int, default=10, help="prompts of each family (default %(default)s)")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--tasks", nargs="+", default=FAMILIES)
    parser.add_argument(
        "--budgets", type=float, nargs="*", default=[0.2], help="shares that asl-span keeps beside the full cache"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: all")
    args = parser.parse_args()
    plan = Plan(tuple(args.tasks), (args.length,), tuple(args.budgets), ("asl-span",), args.samples, REPORT_SEED)
    answer(str(resolve(args.model)), args.out, plan, args.modes)
    print_tables(args.out, args.modes)


if __name__ == "__main__":
    main()
