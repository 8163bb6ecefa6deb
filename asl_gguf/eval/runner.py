"""Runs policies over tasks: one full pass per example serves all of them (replay.py), one JSON line per answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import engine
from ..bench.stock import Model
from ..budget import Budget, round_cells
from ..errors import OptionError
from ..policies import Full, Policy, parse_policy
from ..replay import Records
from ..types import PrefillReport
from .measure import measure
from .tasks import Example, Task, make_task

FULL = "none"
_ANSWER_CELLS = 256


@dataclass(frozen=True)
class Plan:
    """What is run. Results of another plan in the same folder are kept and not repeated."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    """tokens of a prompt, at most"""
    budgets: tuple[float | int, ...]
    policies: tuple[str, ...]
    """names, with parameters in the form name:parameter=value,..."""
    samples: int
    seed: int


Key = tuple[str, int, int, int, str, float | int | None]
Progress = Callable[[int, int, float], None]
"""(examples done, examples in all, seconds since the start)"""


class Results:
    """The lines of a folder. A line is written whole or not at all, whenever the process is killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        self.rows = read_rows(self._path, repair=True)
        self._keys = {key_of(row) for row in self.rows}

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._keys.add(key_of(row))


def key_of(row: dict[str, Any]) -> Key:
    """What names an answer."""
    return (row["task"], row["length"], row["index"], row["seed"], row["policy"], row["budget"])


def read_rows(path: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The lines of a results file; a last line that was cut off is left out, and removed from the file to repair it.

    Raises:
        OptionError: another line is no result.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as err:
        raise OptionError(f"expected one JSON result per line in {path}: {err}") from None


def run(model: Model, plan: Plan, results: Results, *, dequant: str = "auto", progress: Progress | None = None) -> None:
    """Adds every answer of the plan that the results lack.

    Raises:
        OptionError: a task, a policy or one of its parameters is unknown.
    """
    policies = {text: parse_policy(text) for text in plan.policies if text != FULL}
    jobs = [(length, index, name) for length in plan.lengths for index in range(plan.samples) for name in plan.tasks]
    tasks = {
        (name, length): make_task(name, lambda text: len(model.tokenize(text)), length, plan.samples, plan.seed)
        for name in plan.tasks
        for length in plan.lengths
    }
    started = time.perf_counter()
    for done, (length, index, name) in enumerate(jobs):
        if progress:
            progress(done, len(jobs), time.perf_counter() - started)
        key = (name, length, index, plan.seed)
        wanted = [(FULL, None), *((text, budget) for text in policies for budget in plan.budgets)]
        missing = [pair for pair in wanted if (*key, *pair) not in results]
        if missing:
            task = tasks[name, length]
            head = {"task": name, "length": length, "index": index, "seed": plan.seed}
            for row in _answers(model, task, task.get_example(index), missing, policies, dequant):
                results.add(head | row)
    if progress:
        progress(len(jobs), len(jobs), time.perf_counter() - started)


def _answers(
    model: Model,
    task: Task,
    example: Example,
    wanted: list[tuple[str, float | int | None]],
    policies: dict[str, Policy],
    dequant: str,
) -> Iterator[dict[str, Any]]:
    tokens = model.tokenize(example.prompt)
    n_cells = round_cells(len(tokens) + _ANSWER_CELLS)
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, dequant) as session:
        records = Records(session, tokens)
        started = time.perf_counter()
        first, first_budget = wanted[0]
        records.replay_for(policies.get(first, Full()), _kept(policies.get(first, Full()), first_budget, len(tokens)))
        full_seconds = time.perf_counter() - started
        for text, budget in wanted:
            policy = policies.get(text, Full())
            n_kept = _kept(policy, budget, len(tokens))
            replay: Any = records.replay_for(policy, n_kept)
            report = engine.prefill(replay, tokens, policy, n_kept)
            measures = measure(model, ctx, len(tokens), task, example)
            yield {
                "policy": text,
                "budget": budget,
                **asdict(measures),
                **_outline(report),
                "full_seconds": round(full_seconds, 3),
                "references": list(example.references),
                "depths": [round(depth, 4) for depth in example.depths],
                "model": Path(model.path).name,
            }


def _kept(policy: Policy, budget: float | int | None, n_tokens: int) -> int:
    return n_tokens if budget is None else Budget(budget, 0).kept(n_tokens, policy.min_kept)


def _outline(report: PrefillReport) -> dict[str, Any]:
    return {
        "prompt_tokens": report.prompt_tokens,
        "budget_tokens": report.budget_tokens,
        "selection_layer": report.selection_layer,
        "n_layer": report.n_layer,
        "prefill_share": round(report.prefill_share, 4),
        "kv_share": round(report.kv_bytes_prompt / report.kv_bytes_prompt_full, 4),
        "attention_mass": report.attention_mass,
    }
