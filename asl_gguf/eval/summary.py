"""Tables of results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any

from .results import FULL

Row = dict[str, Any]


def group(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Rows by the values of these columns, in order of appearance."""
    result: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        result[tuple(row[name] for name in names)].append(row)
    return result


def relative_score(rows: Sequence[Row], full: Sequence[Row]) -> float | None:
    """Score as a share of the full cache's on the same examples; None where that is 0."""
    base = mean(row["score"] for row in full)
    return mean(row["score"] for row in rows) / base if base > 0 else None


def table(rows: Sequence[Row], length: int) -> str:
    """Markdown: one line per policy and budget, one column per task, at one prompt length."""
    rows = [row for row in rows if row["length"] == length]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    full = [row for row in rows if row["policy"] == FULL]
    by_task = group(full, "task")
    n = min((len(values) for values in by_task.values()), default=0)
    lines = [
        f"{length} tokens, {n} examples a task. Score (share of the answers found), and for all tasks together the "
        "share of the full cache's score; mean negative log-likelihood of the right answer; median selection layer; "
        "mean share of the full prefill's token-layers that were computed; mean share of the K/V kept.",
        "",
        "| policy | budget | " + " | ".join(tasks) + " | all | of full | nll | layer | prefill | K/V |",
        "|---" * (len(tasks) + 8) + "|",
    ]
    ordered = sorted(
        group(rows, "policy", "budget").items(), key=lambda item: (item[0][0] != FULL, item[0][1] or 1, item[0][0])
    )
    for (policy, budget), answers in ordered:
        lines.append(_line(policy, budget, answers, full, tasks))
    return "\n".join(lines)


def document(rows: Sequence[Row]) -> str:
    """Markdown: where the results come from, and a table for each prompt length."""

    def used(name: str) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(row[name] for row in rows))

    lengths = sorted({row["length"] for row in rows})
    budgets = sorted({row["budget"] for row in rows if row["policy"] != FULL})
    policies = dict.fromkeys(row["policy"] for row in rows if row["policy"] != FULL)
    command = (
        f"asl-gguf eval --tasks {','.join(dict.fromkeys(row['task'] for row in rows))} "
        f"--lengths {','.join(map(str, lengths))} --seed {used('seed')} "
        f"--budgets {','.join(str(budget) for budget in budgets)} --policies {','.join(policies)}"
    )
    head = (
        "# Answers under pruning\n\n"
        f"Model {used('model')}, seed {used('seed')} (0: development, 1: reporting). Made by `asl-gguf report` from the "
        f"results of\n\n    {command}\n\n"
        "Tasks and scoring are those of RULER and InfiniteBench (`asl_gguf/eval/tasks`), on prompts of exactly chosen "
        "length. A policy that drops other keys' values can score above the full cache: then it drops distractors."
    )
    return "\n\n".join([head, *(table(rows, length) for length in lengths)])


def _line(policy: str, budget: float | None, answers: list[Row], full: list[Row], tasks: Sequence[str]) -> str:
    by_task = group(answers, "task")
    cells = [f"{mean(row['score'] for row in by_task[(task,)]):.2f}" if (task,) in by_task else "" for task in tasks]
    seen = {(row["task"], row["index"]) for row in answers}
    base = [row for row in full if (row["task"], row["index"]) in seen]
    score = mean(mean(row["score"] for row in values) for values in by_task.values())
    of_full = relative_score(answers, base) if base else None
    layers = [row["selection_layer"] for row in answers if row["selection_layer"] is not None]
    n_never = len(answers) - len(layers)
    layer = f"{median(layers):.0f}" + (f" ({n_never} never)" if n_never else "") if layers else "-"
    return (
        f"| {policy} | {'' if budget is None else budget} | {' | '.join(cells)} | {score:.3f} "
        f"| {'' if of_full is None else f'{of_full:.3f}'} | {mean(row['nll'] for row in answers):.2f} | {layer} "
        f"| {mean(row['prefill_share'] for row in answers):.2f} | {mean(row['kv_share'] for row in answers):.2f} |"
    )
