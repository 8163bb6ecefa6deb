"""The same generated prompts through asl_gguf and through transformers with kvpress: one table of both.

    python bench/peers/evaluate.py --python PEERS/bin/python --out DIR

DIR/ours and DIR/peers hold JSON lines of the same form, which `asl-gguf report DIR/ours DIR/peers` shows together.
Killed and called again, it goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer import Peer, end_tokens, open_both, open_ours, parser, run

from asl_gguf.budget.share import Budget
from asl_gguf.eval import runner
from asl_gguf.eval.chat_format import chat_format
from asl_gguf.eval.measure import MOST_REFERENCE_TOKENS
from asl_gguf.eval.results import Results, Row, read_rows
from asl_gguf.eval.suites import FAMILIES, SEEDS
from asl_gguf.eval.summary import document
from asl_gguf.eval.tasks import Example, Task, make_task
from asl_gguf.native.model import Model

FULL = "transformers"
PREFIX = "kvpress-"
PARTS = ("ours", "peers")


def main() -> None:
    args = _arguments()
    plan = runner.Plan(
        tuple(args.tasks.split(",")), tuple(map(int, args.lengths.split(","))),
        tuple(map(float, args.budgets.split(","))), tuple(args.policies.split(",")), args.samples, SEEDS[args.seed],
    )  # fmt: skip
    parts = args.parts.split(",")
    if "ours" in parts:
        model = open_ours(args)
        runner.run(model, plan, Results(args.out / "ours"), chat=chat_format(model, "auto"))
        model.close()
    if "peers" in parts:
        model, peer = open_both(args)
        results = Results(args.out / "peers")
        try:
            _run_peers(model, peer, plan, args.presses.split(","), results, command=_command(args))
        finally:
            peer.close()
            model.close()
    print(document([row for part in PARTS for row in read_rows(args.out / part / "results.jsonl")]))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--out", type=Path, required=True, help="folder for results")
    made.add_argument("--parts", default=",".join(PARTS), help="what is run; the table shows both")
    made.add_argument("--tasks", default=",".join(FAMILIES))
    made.add_argument("--lengths", default="1024")
    made.add_argument("--budgets", default="0.1,0.2,0.4", help="shares of the prompt's tokens")
    made.add_argument("--policies", default="asl-span,asl,snapkv,streaming_llm", help="of asl_gguf")
    made.add_argument(
        "--presses", default="snapkv:window_size=32,streaming_llm", help="of kvpress, name:parameter=value:..."
    )
    made.add_argument("--samples", type=int, default=10)
    made.add_argument("--seed", choices=[*SEEDS], default="report")
    return made.parse_args()


def _command(args: argparse.Namespace) -> str:
    """What makes the peers' lines again."""
    names = ("tasks", "lengths", "budgets", "presses", "samples", "seed", "threads")
    options = " ".join(f"--{name} {getattr(args, name)}" for name in names)
    return f"python bench/peers/evaluate.py {options} --python PYTHON --out FOLDER"


def _run_peers(
    model: Model, peer: Peer, plan: runner.Plan, presses: list[str], results: Results, *, command: str
) -> None:
    """Adds the lines that are missing: per prompt one of the full cache and one of each press and budget."""
    common = {"model": Path(model.path).name, "settings": {"engine": "transformers", **peer.versions}}
    results.check_same(**common)
    eog = end_tokens(model)
    started = time.perf_counter()
    jobs = list(_prompts(model, plan))
    for done, (task, head) in enumerate(jobs):
        print(f"\r{done} of {len(jobs)} prompts, {time.perf_counter() - started:.0f} s ", end="", file=sys.stderr)
        wanted = [(FULL, None), *((PREFIX + press, budget) for press in presses for budget in plan.budgets)]
        if all((*head.values(), *pair) in results for pair in wanted):
            continue
        example = task.get_example(head["index"])
        for row in _answers(model, peer, task, example, wanted, eog):
            if (*head.values(), row["policy"], row["budget"]) not in results:
                results.add(head | row | common | {"command": command})
    print(file=sys.stderr)


def _prompts(model: Model, plan: runner.Plan) -> Iterator[tuple[Task, Row]]:
    """Example by example of all tasks."""
    chat = chat_format(model, "auto")
    for length in plan.lengths:
        tasks = {
            name: make_task(name, lambda text: len(model.tokenize(text)), length, plan.samples, plan.seed, chat)
            for name in plan.tasks
        }
        for index in range(plan.samples):
            for name, task in tasks.items():
                yield task, {"task": name, "length": length, "index": index, "seed": plan.seed}


def _answers(
    model: Model, peer: Peer, task: Task, example: Example, wanted: list[tuple[str, float | None]], eog: list[int]
) -> Iterator[Row]:
    tokens = model.tokenize(example.prompt)
    n_tokens = len(tokens)
    kept = [n_tokens if budget is None else Budget(budget, 0).kept(n_tokens, 1) for _, budget in wanted]
    presses = [None if policy == FULL else policy.removeprefix(PREFIX) for policy, _ in wanted]
    answers = peer.ask(
        "answers", tokens=tokens, reference=model.tokenize_plain(example.reference_text)[:MOST_REFERENCE_TOKENS],
        max_new_tokens=example.max_new_tokens, eog=eog,
        wanted=[{"press": press, "n_kept": n_kept} for press, n_kept in zip(presses, kept)],
    )  # fmt: skip
    for (policy, budget), n_kept, answer in zip(wanted, kept, answers, strict=True):
        completion = model.detokenize(answer.pop("tokens"))
        yield (
            _outline(model, n_tokens, n_kept)
            | answer
            | {
                "policy": policy,
                "budget": budget,
                "score": task.evaluate(example, completion),
                "completion": completion,
                "references": list(example.references),
                "depths": [round(depth, 4) for depth in example.depths],
                "prompt_sha256": hashlib.sha256(example.prompt.encode()).hexdigest()[:16],
            }
        )


def _outline(model: Model, n_tokens: int, n_kept: int) -> dict[str, Any]:
    """Every layer runs over all tokens, and keeps n_kept rows per KV head."""
    return {
        "prompt_tokens": n_tokens,
        "budget_tokens": n_kept,
        "selection_layer": None,
        "n_layer": model.n_layer,
        "prefill_share": 1.0,
        "kv_share": round(n_kept / n_tokens, 4),
        "attention_mass": None,
    }


if __name__ == "__main__":
    sys.exit(run(main))
