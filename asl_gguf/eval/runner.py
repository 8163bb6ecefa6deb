"""Runs policies over tasks: one full pass per example serves all of them (replay.py), one JSON line per answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..budget.late import PromptBudget, Shape, auto_budget, fixed_budget
from ..budget.share import ROOM, Budget, round_cells
from ..budget.targets import Auto
from ..engine.prefill import prefill
from ..engine.replay import RECORD_BYTES, Records, recording_bytes
from ..models.calibration import calibrated, cut_of
from ..native.context import model_shape
from ..native.model import Model
from ..native.session import Session
from ..policies import Full, Policy, parse_policy
from ..policies.contract import Floats, LateBudget
from ..policies.cut import Cut
from ..report import PrefillReport
from .machine import processor
from .measure import MOST_REFERENCE_TOKENS, answer_logits, measure
from .results import FULL, Key, Results, Row, key_of, read_rows
from .tasks import CHATML, ChatFormat, Example, Task, label, make_task

__all__ = ["FULL", "Key", "Plan", "Results", "key_of", "read_rows", "run"]

_LEAST_ANSWER_CELLS = 256


@dataclass(frozen=True)
class Plan:
    """What is run. Results of another plan in the same folder are kept and not repeated."""

    tasks: tuple[str, ...]
    """names, or name:FILE"""
    lengths: tuple[int, ...]
    """tokens of a prompt, at most"""
    budgets: tuple[float | int | str, ...]
    """shares, tokens, or `auto` and its like"""
    policies: tuple[str, ...]
    """names, with parameters in the form name:parameter=value:..."""
    samples: int
    """examples of a task; of `niah`: at each depth"""
    seed: int
    depths: tuple[int, ...] = tuple(range(0, 101, 10))
    """of `niah`, in percent of the haystack"""


Progress = Callable[[int, int, float], None]
"""(examples done, examples in all, seconds since the start)"""
Wanted = tuple[str, float | int | str | None]
"""policy and budget of an answer"""


@dataclass(frozen=True)
class _Job:
    """One prompt, with the answers to it that are wanted."""

    task: Task
    head: Row
    """task, length, index and seed of its lines"""
    wanted: tuple[Wanted, ...]

    def missing(self, results: Results) -> list[Wanted]:
        """Answers that the results lack."""
        return [pair for pair in self.wanted if (*self.head.values(), *pair) not in results]


def run(
    model: Model,
    plan: Plan | Sequence[Plan],
    results: Results,
    *,
    dequant: str = "auto",
    chat: ChatFormat = CHATML,
    record_bytes: int = RECORD_BYTES,
    calibration: bool = False,
    progress: Progress | None = None,
) -> None:
    """Adds every answer of the plans that the results lack.

    Args:
        chat: the format of the prompts.
        record_bytes: host memory for the full passes over a prompt that serve all policies; where they need more,
            each answer is prefilled by itself.
        calibration: policies are taken as `asl-gguf calibrate` stored them for this model.

    Raises:
        ModelError: what is stored is corrupt.
        OptionError: a task, a policy or one of its parameters is unknown, or the folder has results of another model
            or of other settings.
    """
    plans = [plan] if isinstance(plan, Plan) else plan
    policies = {text: parse_policy(text) for one in plans for text in one.policies if text != FULL}
    cuts: dict[str, Cut | None] = {}
    if calibration:
        policies = {text: calibrated(text, model.path)[0] for text in policies}
        cuts = {text: cut_of(policy, model.path) for text, policy in policies.items()}
    jobs = [job for one in plans for job in _jobs(model, one, chat)]
    common: Row = {"model": Path(model.path).name, "settings": _settings(model, dequant, chat)}
    if calibration:
        common["settings"]["calibrated"] = {text: repr((policy, cuts[text])) for text, policy in policies.items()}
    results.check_same(**common)
    common |= {"n_threads": model.options.n_threads, "processor": processor()}
    _check_lengths(jobs, results)
    started = time.perf_counter()
    for done, job in enumerate(jobs):
        if progress:
            progress(done, len(jobs), time.perf_counter() - started)
        before = time.perf_counter()
        if missing := job.missing(results):
            example = job.task.get_example(job.head["index"])
            answers = _Answers(model, job.task, example, dequant, record_bytes)
            for row in answers.rows(missing, policies, cuts):
                now = time.perf_counter()
                results.add(job.head | row | common | {"seconds": round(now - before, 3)})
                before = now
    if progress:
        progress(len(jobs), len(jobs), time.perf_counter() - started)


def _check_lengths(jobs: Sequence[_Job], results: Results) -> None:
    """Raises OptionError if one of the tasks has no prompt of its length: before hours of others, not after them."""
    seen: set[tuple[str, int]] = set()
    for job in jobs:
        kind = (job.head["task"], job.head["length"])
        if kind not in seen and job.missing(results):
            seen.add(kind)
            job.task.get_example(job.head["index"])


def _jobs(model: Model, plan: Plan, chat: ChatFormat) -> Iterator[_Job]:
    """Jobs by length, then example by example of all tasks, so that an interrupted run covers every task."""
    policies = [text for text in plan.policies if text != FULL]
    late = [text for text in policies if parse_policy(text).decides_late]
    wanted: tuple[Wanted, ...] = (
        (FULL, None),  # `auto` is for the policies that take it; if none does, it is refused later
        *(
            (text, one)
            for text in policies
            for one in plan.budgets
            if not isinstance(one, str) or text in (late or policies)
        ),
    )
    for length in plan.lengths:
        tasks = [
            make_task(spec, lambda text: len(model.tokenize(text)), length, plan.samples, plan.seed, chat)
            for spec in plan.tasks
        ]
        indices = [task.indices(plan.depths) for task in tasks]
        for turn in range(max(map(len, indices), default=0)):
            for spec, task, of_task in zip(plan.tasks, tasks, indices):
                if turn < len(of_task):
                    head = {"task": label(spec), "length": length, "index": of_task[turn], "seed": plan.seed}
                    yield _Job(task, head, wanted)


def _settings(model: Model, dequant: str, chat: ChatFormat) -> dict[str, Any]:
    """What a line depends on beside its key and the model."""
    options = {name: value for name, value in asdict(model.options).items() if name != "n_threads"}
    return {**options, "dequant": dequant, "chat": list(asdict(chat).values()), "version": __version__}


class _Answers:
    """The answers to one example."""

    def __init__(self, model: Model, task: Task, example: Example, dequant: str, record_bytes: int) -> None:
        self._model, self._task, self._example, self._dequant = model, task, example, dequant
        self._record_bytes = record_bytes
        self._tokens = model.tokenize(example.prompt)

    def rows(self, wanted: Sequence[Wanted], policies: dict[str, Policy], cuts: dict[str, Cut | None]) -> Iterator[Row]:
        model, n_tokens = self._model, len(self._tokens)
        n_answer = max(_LEAST_ANSWER_CELLS, MOST_REFERENCE_TOKENS + 1, self._example.max_new_tokens)
        n_cells = round_cells(n_tokens + n_answer)
        chosen = []
        for text, budget in wanted:
            policy = policies.get(text, Full())
            chosen.append((text, budget, policy, most_kept(budget, n_tokens, policy)))
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, self._dequant) as session:
            n_bytes = recording_bytes(session, n_tokens)
            in_use = [(policy, n_kept) for *_, policy, n_kept in chosen]
            shared = _Shared(session, self._tokens, in_use, n_bytes, self._record_bytes)
            started = time.perf_counter()
            shared.for_policy(*chosen[0][2:])
            full_seconds = time.perf_counter() - started
            full: list[Floats] | None = None
            if chosen[0][0] != FULL:  # it is in the results already; its logits are not
                prefill(shared.for_policy(Full(), n_tokens), self._tokens, Full(), n_tokens)
                full = answer_logits(model, ctx, n_tokens, self._example)
            for text, budget, policy, n_kept in chosen:
                late = late_budget(budget, policy, n_tokens, n_kept, model_shape(model.handle), cuts.get(text))
                report, seconds = shared.prefill(policy, n_kept, late)
                spent = time.perf_counter() - started
                rows = answer_logits(model, ctx, n_tokens, self._example)
                full = rows if full is None else full
                measures = measure(model, ctx, n_tokens, self._task, self._example, full=full, rows=rows)
                yield {
                    "policy": text,
                    "budget": budget,
                    **asdict(measures),
                    **_outline(report),
                    "choice": None if late is None else late.choice,
                    "prefill_seconds": round(seconds, 3),
                    "prefill_spent": round(spent, 3),
                    "shared": shared.shares,
                    "full_seconds": round(full_seconds, 3) if shared.shares else None,
                    "references": list(self._example.references),
                    "depths": [round(depth, 4) for depth in self._example.depths],
                    "prompt_sha256": hashlib.sha256(self._example.prompt.encode()).hexdigest()[:16],
                }
                started = time.perf_counter()


class _Shared:
    """Full passes over a prompt that serve all policies, if host memory allows; else each policy runs by itself."""

    def __init__(
        self,
        session: Session,
        tokens: Sequence[int],
        uses: Sequence[tuple[Policy, int]],
        bytes_of_record: int,
        most_bytes: int,
    ) -> None:
        self._session, self._tokens = session, tokens
        self._records = Records(session, tokens)
        self.shares = self._records.n_passes(uses) * bytes_of_record <= most_bytes

    def for_policy(self, policy: Policy, n_kept: int) -> Any:
        """A session, or what stands in for one."""
        return self._records.replay_for(policy, n_kept) if self.shares else self._session

    def prefill(self, policy: Policy, n_kept: int, late: LateBudget | None = None) -> tuple[PrefillReport, float]:
        """The report, and the seconds a prefill by itself takes: layers from a record count as they took there."""
        session = self.for_policy(policy, n_kept if late is None else late.n_window)
        before = session.seconds_spared if self.shares else 0.0
        report = prefill(session, self._tokens, policy, n_kept if late is None else late.n_held, late=late)
        return report, report.prefill_seconds + (session.seconds_spared - before if self.shares else 0.0)


def most_kept(budget: float | int | str | None, n_tokens: int, policy: Policy) -> int:
    """Tokens that a budget keeps of a prompt, at most."""
    if budget is None:
        return n_tokens
    if isinstance(budget, str):
        auto = Auto.parse(budget, 0)
        auto.check(policy)
        budget = auto.most
    return Budget(budget, 0).kept(n_tokens, policy.min_kept)


def late_budget(
    budget: float | int | str | None, policy: Policy, n_tokens: int, n_kept: int, shape: Shape, cut: Cut | None = None
) -> PromptBudget | None:
    """What is decided as the prompt is read, as a `Llama` with this budget does."""
    if n_kept >= n_tokens:
        return None
    if isinstance(budget, str):
        return auto_budget(Auto.parse(budget, 0), policy, n_tokens, n_kept, shape, cut=cut)
    late = fixed_budget(policy, n_tokens, n_kept, shape)
    if late is not None:  # in the cells that a `Llama` has
        late.n_held = max(n_kept, min(late.n_held, round_cells(n_kept + ROOM)))
    return late


def _outline(report: PrefillReport) -> Row:
    return {
        "prompt_tokens": report.prompt_tokens,
        "budget_tokens": report.budget_tokens,
        "selection_layer": report.selection_layer,
        "n_layer": report.n_layer,
        "prefill_share": round(report.prefill_share, 4),
        "kv_share": round(report.kv_bytes_prompt / report.kv_bytes_prompt_full, 4),
        "kv_bytes": report.kv_bytes_prompt,
        "attention_mass": report.attention_mass,
    }
