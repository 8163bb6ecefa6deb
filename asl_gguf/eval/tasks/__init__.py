"""The tasks of RULER, "needle in a haystack" and InfiniteBench, forms of them that small models follow, and ours.

Prompts have any length and are made from a seed; some read a file that the user gives, nothing is downloaded. Choose thresholds, budgets and prompt forms on
DEVELOPMENT_SEED; report figures from REPORT_SEED, whose examples no choice has seen.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import OptionError
from .base import CHATML, PLAIN, ChatFormat, Example, Task
from .code import FunctionResult, Identifier, Records, Table
from .facts import Compare, Rule, Sum, Turns
from .files import label
from .frequency import CommonWords, FrequentWords
from .infinitebench import CodeRun, KvRetrieval, MathFind
from .infinitebench_files import FILE_TASKS
from .keyvalue import KeyValue, UuidKeyValue
from .needles import MultiKey, MultiValue, NoiseNeedle, ProseNeedle
from .passkey import NumberString, PassKey
from .qa import HotpotQuestion, SquadQuestion
from .ruler_needles import FourKeys, FourQueries, NeedlesOnly, Niah, UuidNeedle, UuidNeedlesOnly
from .subjects import Gist, Subjects, Tone
from .text import Continuation
from .tracking import RulerTracking, VariableTracking

__all__ = [
    "ALIASES",
    "CHATML",
    "DEVELOPMENT_SEED",
    "PLAIN",
    "REPORT_SEED",
    "TASKS",
    "ChatFormat",
    "Example",
    "Task",
    "VariableTracking",
    "label",
    "make_task",
    "task_class",
]

DEVELOPMENT_SEED = 0
"""For choosing: whatever was tuned on these examples is not reported on them."""
REPORT_SEED = 1
"""For figures that are reported."""

_ALL: tuple[type[Task], ...] = (
    NoiseNeedle,
    ProseNeedle,
    MultiKey,
    MultiValue,
    KeyValue,
    UuidKeyValue,
    PassKey,
    NumberString,
    VariableTracking,
    Gist,
    Subjects,
    Tone,
    Compare,
    Sum,
    Rule,
    Turns,
    FunctionResult,
    Identifier,
    Table,
    Records,
    UuidNeedle,
    FourKeys,
    NeedlesOnly,
    UuidNeedlesOnly,
    FourQueries,
    RulerTracking,
    CommonWords,
    FrequentWords,
    SquadQuestion,
    HotpotQuestion,
    Niah,
    MathFind,
    CodeRun,
    KvRetrieval,
    *FILE_TASKS,
    Continuation,
)
TASKS = {task.name: task for task in _ALL}
"""The tasks by name, each with its default options."""

ALIASES = {"niah_single_1": "niah_noise", "niah_single_2": "niah_prose", "niah_multivalue": "multivalue"}
"""RULER's names of tasks that have one of ours."""


def task_class(name: str) -> type[Task]:
    """The class of a task by its name, or by RULER's.

    Raises:
        OptionError: there is none.
    """
    if (known := ALIASES.get(name, name)) not in TASKS:
        raise OptionError(f"expected a task among {', '.join([*TASKS, *ALIASES])}, got {name!r}; TASKS holds them all")
    return TASKS[known]


def make_task(
    spec: str,
    count_tokens: Callable[[str], int],
    n_tokens: int,
    num_examples: int,
    seed: int,
    chat: ChatFormat = CHATML,
) -> Task:
    """A task by its name, or by name:FILE where it reads one; for the other arguments see Task.

    Raises:
        OptionError: the name is unknown, a file is missing or one too many, or an argument is outside its domain.
    """
    name, _, source = spec.partition(":")
    return task_class(name)(count_tokens, n_tokens, num_examples, seed, chat, source or None)
