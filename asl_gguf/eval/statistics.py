"""What the tables and figures say of a group of results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from .results import FULL, Row

Z_95 = 1.959963984540054
"""of a normal distribution: 95 % lie within"""


def group(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """Rows by the values of these columns, in order of appearance."""
    result: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        result[tuple(row[name] for name in names)].append(row)
    return result


def run_alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the tasks that the same policies and budgets ran on: only then do means over tasks compare. Those with the most
    policies and budgets come first."""
    alike: dict[frozenset, list[Row]] = defaultdict(list)
    for of_task in group(rows, "task").values():
        alike[frozenset(group(of_task, "policy", "budget"))] += of_task
    return [alike[settings] for settings in sorted(alike, key=len, reverse=True)]


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share that was found in n prompts (Wilson's score interval).

    Scores between 0 and 1, of several answers in one prompt, vary less than hits and misses: for them it is rather
    too wide than too narrow.
    """
    z2 = Z_95**2 / n
    middle = (score + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * math.sqrt(score * (1 - score) / n + z2 / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_of_tasks(rows: Sequence[Row]) -> float:
    """Mean over the tasks of their mean scores."""
    return mean(mean(row["score"] for row in of_task) for of_task in group(rows, "task").values())


def relative_score(rows: Sequence[Row], full: Sequence[Row]) -> float | None:
    """Score as a share of the full cache's on the same examples; None where that is 0."""
    base = mean(row["score"] for row in full)
    return mean(row["score"] for row in rows) / base if base > 0 else None


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Mean of a column over the rows that have it; None if none has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return mean(values) if values else None


def decode_speed(rows: Sequence[Row]) -> float | None:
    """Tokens per second of the answers that were written token by token; None if none was timed."""
    timed = [row for row in rows if row.get("decode_tokens") and row["decode_seconds"] > 0]
    seconds = sum(row["decode_seconds"] for row in timed)
    return sum(row["decode_tokens"] for row in timed) / seconds if seconds else None


def budget_share(row: Row) -> float:
    """The budget as a share of the prompt's tokens; 1 for the full cache."""
    return 1.0 if row["policy"] == FULL else row["budget_tokens"] / row["prompt_tokens"]


def policies_of(rows: Iterable[Row]) -> list[str]:
    """Names in order of appearance, the full cache first."""
    names: dict[str, Any] = dict.fromkeys(row["policy"] for row in rows)
    return sorted(names, key=lambda name: name != FULL)
