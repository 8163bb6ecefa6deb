"""Markdown table of results with one line per task, and how sure the mean over all of them is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import numpy as np

from .results import FULL, Row
from .statistics import budget_share, group, relative_score
from .summary import ordered

_DRAWS = 2000


def by_task(rows: Sequence[Row], length: int) -> str:
    """Markdown: of each task and of all, at one prompt length, each policy and budget beside the full cache.

    Only examples that the full cache and the policy have both answered count.
    """
    rows = [row for row in rows if row["length"] == length]
    full = {_example(row): row for row in rows if row["policy"] == FULL}
    columns = [
        (name, [row for row in found if _example(row) in full]) for name, found in ordered(rows) if name[0] != FULL
    ]
    columns = [(name, found) for name, found in columns if found]
    tasks = list(dict.fromkeys(row["task"] for row in full.values()))
    lines = [
        f"{length} tokens, each task by itself. Full cache: score, and nats of the right answer. Policies: score, nats more "
        "than the full cache's, share of the tokens that were kept, median selection layer, share of the full prefill. All: "
        "score as a share of the full cache's too, with its 95 % interval over prompts (2,000 draws within each task).",
        "",
        f"| task | prompts | full cache | {' | '.join(f'{policy}, {budget}' for (policy, budget), _ in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for task in (*tasks, None):
        base = [row for row in full.values() if task in (None, row["task"])]
        cells = [f"{mean(row['score'] for row in base):.2f}, {mean(row['nll'] for row in base):.2f}"]
        for _, found in columns:
            answers = [row for row in found if task in (None, row["task"])]
            cells.append(_cell(answers, [full[_example(row)] for row in answers], with_share=task is None))
        lines.append(f"| {task or 'all'} | {len(base)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def relative_interval(rows: Sequence[Row], full: Sequence[Row]) -> tuple[float, float] | None:
    """95 % interval of `relative_score` over other prompts of the same tasks, from draws with replacement.

    Args:
        full: the full cache's answer to each of `rows`, in the same order.

    Returns:
        None where the full cache answers nothing in some draw.
    """
    random = np.random.default_rng(0)
    sums = np.zeros((2, _DRAWS))
    for places in group([{"task": row["task"], "place": i} for i, row in enumerate(rows)], "task").values():
        pairs = np.array([(rows[one["place"]]["score"], full[one["place"]]["score"]) for one in places])
        sums += pairs[random.integers(0, len(pairs), (_DRAWS, len(pairs)))].sum(axis=1).T
    if not sums[1].all():
        return None
    low, high = np.quantile(sums[0] / sums[1], (0.025, 0.975))
    return float(low), float(high)


def _example(row: Row) -> tuple:
    return row["task"], row["seed"], row["index"]


def _cell(answers: Sequence[Row], base: Sequence[Row], *, with_share: bool) -> str:
    if not answers:
        return ""
    score = f"{mean(row['score'] for row in answers):.2f}"
    if with_share and (share := relative_score(answers, base)) is not None:
        interval = relative_interval(answers, base)
        score += f" ({share:.2f}" + (f" [{interval[0]:.2f}-{interval[1]:.2f}]" if interval else "") + ")"
    more = mean(row["nll"] for row in answers) - mean(row["nll"] for row in base)
    layers = [row["selection_layer"] for row in answers if row["selection_layer"] is not None]
    layer = f"{median(layers):.0f}" if layers else "-"
    return (
        f"{score}, {more:+.2f}, {mean(budget_share(row) for row in answers):.2f}, {layer}, "
        f"{mean(row['prefill_share'] for row in answers):.2f}"
    )
