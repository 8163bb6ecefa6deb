"""`asl-gguf bench slices`: how long one slice of a prefill takes, and what slicing costs."""

from __future__ import annotations

from statistics import median
from typing import Any

from ..budget.rule import BudgetContext, ShareRule
from ..budget.share import Budget
from ..engine.place import OwnContext
from ..engine.plan import Request
from ..engine.sequence import Sequence
from ..engine.transcript import Transcript
from ..native.model import Model, Timing, timed
from ..native.session import Session
from ..policies import make_policy
from .prefill import make_prompt


def bench_slices(
    model: Model, *, n_tokens: int, budget: float | int, policy: str, dequant: str, runs: int
) -> dict[str, Any]:
    """Seconds of the slices of one prefill, and of sliced to unsliced prefills, alternating; by the clock and in CPU time.

    A slice is at most one chunk of one layer. Unsliced: the native calls run all chunks of a layer without coming back.
    """
    tokens = make_prompt(model, n_tokens)
    n_ctx = len(tokens) + 256
    rule = ShareRule(Budget(budget), BudgetContext(model.path, n_ctx, make_policy(policy), room=64))
    slices: list[list[Timing]] = []
    whole: list[Timing] = []
    with model.context(rule.n_cells) as ctx, model.session(ctx, rule.n_cells, n_ctx, dequant) as session:
        sequence = Sequence(OwnContext(ctx, session), rule, Transcript(n_ctx), dequant=dequant)
        for run in range(runs + 1):
            sliced = _slices(sequence, tokens)
            _, unsliced = timed(lambda: _run_whole(sequence, tokens))
            if run:  # the first one meets pages and threads that are not there yet
                whole.append(unsliced)
                slices.append(sliced)
    result: dict[str, Any] = {
        "prompt_tokens": len(tokens),
        "chunk_tokens": model.options.n_ubatch,
        "n_threads": model.options.n_threads,
        "slices": len(slices[0]),
        "spreads": {},
    }
    for clock, suffix in (("wall", ""), ("cpu", "_cpu")):
        seconds = [[getattr(slice_, clock) for slice_ in of_run] for of_run in slices]
        ratios = [sum(of_run) / getattr(unsliced, clock) for of_run, unsliced in zip(seconds, whole, strict=True)]
        for name, values in (
            ("longest_slice", [max(of_run) for of_run in seconds]),
            ("median_slice", [median(of_run) for of_run in seconds]),
            ("sliced_to_unsliced", ratios),
        ):
            result[name + suffix] = median(values)
            result["spreads"][name + suffix] = [min(values), max(values)]
    return result


def _slices(sequence: Sequence, tokens: list[int]) -> list[Timing]:
    """The times of each."""
    sequence.clear()
    sequence.start(sequence.plan(Request(tokens)))
    times, more = [], True
    while more:
        more, timing = timed(sequence.step)
        times.append(timing)
    return times


class _Whole:
    """Layers of a session that give way between layers alone."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def running(self, n_layers: int, with_scores: bool) -> Any:
        self._session.run(n_layers, with_scores)
        return iter(())

    def finishing(self) -> Any:
        self._session.finish()
        return iter(())


def _run_whole(sequence: Sequence, tokens: list[int]) -> None:
    sequence.clear()
    sequence.source = lambda session, _: _Whole(session)
    try:
        sequence.run(sequence.plan(Request(tokens)))
    finally:
        sequence.source = None
