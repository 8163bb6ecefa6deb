"""Named evaluations: data, one plan for each part. docs/EVALUATION.md says what they are for and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .runner import Plan
from .tasks import DEVELOPMENT_SEED, REPORT_SEED, task_class
from .tasks.haystacks import HAYSTACK
from .tasks.infinitebench_files import FILE_TASKS

Suite = tuple[Plan, ...]

FAMILIES = ("niah_prose", "multikey", "keyvalue", "multivalue", "passkey", "tracking")
"""one task of each kind that a model of 100M parameters solves"""
QUESTIONS = (
    *("gist", "topics", "tone", "compare", "sum", "rule", "turns"),
    *("function", "identifier", "table", "records"),
)
"""what retrieval does not ask: gists, facts put together, a rule, earlier turns, code, tables. Ours"""
RULER = (
    *(f"niah_single_{i}" for i in (1, 2, 3)),
    *(f"niah_multikey_{i}" for i in (1, 2, 3)),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)
INFINITEBENCH = (
    *("passkey", "number_string", "kv_retrieval", "math_find", "code_run"),
    *(task.name for task in FILE_TASKS),
)

_ALL_POLICIES = (
    *("asl-span", "asl", "asl-two-pass", "fastkv:window=32", "gemfilter", "snapkv", "pyramidinfer", "streaming_llm"),
)
_MAIN_POLICIES = ("asl-span", "asl", "fastkv:window=32", "gemfilter", "snapkv", "streaming_llm")
_PAPER_POLICIES = ("asl", "asl-two-pass", "asl-span", "fastkv", "gemfilter", "snapkv", "streaming_llm")
_PAPER_BUDGETS = (2048,)

SUITES: dict[str, Suite] = {
    "standard": (
        Plan(FAMILIES, (1024, 2048), (0.05, 0.1, 0.2, 0.4), _ALL_POLICIES, 20, DEVELOPMENT_SEED),
        Plan(QUESTIONS, (1024,), (0.1, 0.2, 0.4), _MAIN_POLICIES, 20, DEVELOPMENT_SEED),
    ),
    "smoke": (Plan(("niah_prose", "multikey", "passkey"), (512,), (0.1, 0.2), ("asl-span", "snapkv"), 2, 0),),
    "small": (
        Plan(FAMILIES, (1024,), (0.1, 0.2, 0.4), _MAIN_POLICIES, 10, REPORT_SEED),
        Plan(("niah",), (512, 1024, 2048), (0.1,), _MAIN_POLICIES, 1, REPORT_SEED, depths=(0, 25, 50, 75, 100)),
        Plan(QUESTIONS, (1024,), (0.2,), ("asl-span", "streaming_llm"), 5, REPORT_SEED),
    ),
    "paper": (
        Plan(RULER, (8192,), _PAPER_BUDGETS, _PAPER_POLICIES, 100, REPORT_SEED),
        Plan(INFINITEBENCH, (131072,), _PAPER_BUDGETS, _PAPER_POLICIES, 100, REPORT_SEED),
        Plan(
            ("niah",),
            (4096, 8192, 16384, 32768, 65536, 131072, 262144),
            _PAPER_BUDGETS,
            _PAPER_POLICIES,
            1,
            REPORT_SEED,
        ),
    ),
}
SEEDS = {"development": DEVELOPMENT_SEED, "report": REPORT_SEED}


@dataclass(frozen=True)
class Files:
    """What the user gives for the tasks that read a file."""

    haystack: str | None = None
    """a text in the place of the prose, for the tasks that have one; for `niah` also `noise`"""
    squad: str | None = None
    hotpotqa: str | None = None
    infinitebench: str | None = None
    """folder of InfiniteBench's JSON lines files"""

    def spec(self, task: str) -> str:
        """A task's name with the file it reads, if there is one for it."""
        if ":" in task:
            return task
        cls = task_class(task)
        path = {"qa_1": self.squad, "qa_2": self.hotpotqa}.get(cls.name)
        if cls in FILE_TASKS and self.infinitebench is not None:
            path = str(Path(self.infinitebench) / f"{cls.name}.jsonl")
        if cls.source_is is not None and cls.source_is.startswith(HAYSTACK):
            path = self.haystack if self.haystack != "noise" or cls.name == "niah" else None
        return task if path is None else f"{task}:{path}"


def plans(suite: str, overrides: Mapping[str, Any], files: Files) -> tuple[list[Plan], list[str]]:
    """The plans of a suite, and those of its tasks that are left out because they read a file that was not given.

    Args:
        overrides: fields of Plan that take the place of those of every part. A task that is named there runs as in
            the part that has it, or else as in the first part; parts without any of them are left out.

    Raises:
        OptionError: the suite, a field or a task is unknown.
    """
    if suite not in SUITES:
        raise OptionError(f"--suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    if unknown := set(overrides) - {field.name for field in fields(Plan)}:
        raise OptionError(f"expected fields of a plan, got {', '.join(sorted(unknown))}")
    parts = SUITES[suite]
    named: tuple[str, ...] | None = overrides.get("tasks")
    if named is not None:
        home = {task: part for part in reversed(parts) for task in part.tasks}
        homes = [(home.get(task.partition(":")[0], parts[0]), task) for task in named]
        parts = tuple(replace(part, tasks=tuple(task for at, task in homes if at is part)) for part in parts)
    values = {name: value for name, value in overrides.items() if name != "tasks"}
    made, left_out = [], []
    for part in parts:
        specs = [files.spec(task) for task in part.tasks]
        if named is None:
            left_out += [spec for spec in specs if ":" not in spec and task_class(spec).needs_source]
        tasks = tuple(spec for spec in specs if spec not in left_out)
        if tasks:
            made.append(replace(part, tasks=tasks, **values))
    return made, left_out
