"""Synthetic tasks whose prompts can have any length: needles, pass keys, look-ups, variable tracking.

All prompts are made from a seed, nothing is downloaded. Choose thresholds, budgets and prompt forms on
DEVELOPMENT_SEED; report figures from REPORT_SEED, whose examples no choice has seen.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import OptionError
from .base import CHATML, PLAIN, ChatFormat, Example, Task
from .keyvalue import KeyValue, UuidKeyValue
from .needles import MultiKey, MultiValue, NoiseNeedle, ProseNeedle
from .passkey import NumberString, PassKey
from .tracking import VariableTracking

__all__ = [
    "CHATML",
    "DEVELOPMENT_SEED",
    "PLAIN",
    "REPORT_SEED",
    "TASKS",
    "ChatFormat",
    "Example",
    "Task",
    "VariableTracking",
    "make_task",
]

DEVELOPMENT_SEED = 0
"""For choosing: whatever was tuned on these examples is not reported on them."""
REPORT_SEED = 1
"""For figures that are reported."""

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        NoiseNeedle,
        ProseNeedle,
        MultiKey,
        MultiValue,
        KeyValue,
        UuidKeyValue,
        PassKey,
        NumberString,
        VariableTracking,
    )
}
"""The tasks by name, each with its default options."""


def make_task(
    name: str,
    count_tokens: Callable[[str], int],
    n_tokens: int,
    num_examples: int,
    seed: int,
    chat: ChatFormat = CHATML,
) -> Task:
    """The task of that name; for the arguments see Task."""
    if name not in TASKS:
        raise OptionError(f"expected a task among {', '.join(TASKS)}, got {name!r}; TASKS holds them all")
    return TASKS[name](count_tokens, n_tokens, num_examples, seed, chat)
