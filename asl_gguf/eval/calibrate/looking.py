"""Reads prompts of many kinds for `auto`: what each head looks at, and what the least that `auto` keeps costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...budget.late import auto_budget
from ...budget.share import Budget, round_cells
from ...budget.targets import Auto
from ...engine.prefill import prefill
from ...engine.replay import Replay, record
from ...errors import OptionError
from ...native.model import Model
from ...policies import ASL
from ...policies.contract import Floats, LayerScores
from ...policies.cut import head_attention, peaks
from ...policies.ranking import window_scores
from ..measure import measure
from ..suites import FAMILIES, QUESTIONS
from ..tasks import DEVELOPMENT_SEED, ChatFormat, Example, Task, make_task
from .cutting import FEW, Doubles, Found, Seen, search, verdict

KINDS = ("niah_noise", *FAMILIES, *QUESTIONS)
"""tasks: one place, look-ups, several answers, chains, all of a text"""
CHECK_SEED = 3
"""of the prompts that a choice is checked on: neither those that it is made on nor those that figures are reported of"""
HELD_OUT = (1, 2)
"""of these, one prompt of each kind in each of these lengths, in those that a choice is made on: longer prompts read otherwise"""
_EARLIEST = 4
"""layers in the first quarter of the model tell nothing of a question"""
_ANSWER_CELLS = 256
AUTO = Auto.parse("auto")

Progress = Callable[[int, int], None]


@dataclass
class _Settled:
    """A `LateBudget` that was decided before."""

    n_kept: int
    n_most: int
    n_window: int
    n_queries: int = 0
    spreads: bool = False
    crowded: bool = False
    n_asking: int = 0

    def __post_init__(self) -> None:
        self.n_held = self.n_most

    def reads(self, layer: int) -> bool:
        return False

    def see(self, scores: LayerScores) -> None:
        """Nothing is read."""

    def choose(self, layer: int, last: int) -> int:
        return self.n_kept


class Looker:
    """Prompts of one model, read under one policy.

    Args:
        policy: with the layers that it will run with.
        n_tokens: longest prompt.
    """

    def __init__(self, model: Model, policy: ASL, n_tokens: int, dequant: str, chat: ChatFormat) -> None:
        self._model, self._policy, self._n_tokens = model, policy, n_tokens
        self._dequant, self._chat = dequant, chat
        self.scale: float | None = None
        """of the products of queries and keys, once a layer was read"""

    def find(self, samples: int, progress: Progress | None = None) -> Found:
        """The cut that `auto` goes by, if there is one that pays."""
        try:
            return self._find(samples, progress)
        except OptionError as error:  # a kind of prompts has none so short
            return Found(None, f"not looked for: {error}")

    def _find(self, samples: int, progress: Progress | None) -> Found:
        n_all = len(KINDS) * (samples + len(HELD_OUT))
        seen = self._look(DEVELOPMENT_SEED, samples, 1, _after(0, n_all, progress))
        cuts, reason = search(seen, self.scale or 1.0)
        if not cuts:
            return Found(None, reason)
        held_out: list[Seen] = []
        for times in HELD_OUT:
            held_out += self._look(CHECK_SEED, 1, times, _after(len(seen) + len(held_out), n_all, progress))
        return verdict(cuts, held_out, AUTO.most)

    def _look(self, seed: int, samples: int, times: int, done: Callable[[int], object]) -> list[Seen]:
        """Prompts of each kind, so many times as long."""
        seen: list[Seen] = []
        for kind in KINDS:
            task = make_task(
                kind, lambda text: len(self._model.tokenize(text)), times * self._n_tokens, samples, seed, self._chat
            )
            for index in range(samples):
                done(len(seen))
                seen.append(self._look_at(task, task.get_example(index)))
        return seen

    def _look_at(self, task: Task, example: Example) -> Seen:
        model, policy = self._model, self._policy
        tokens = model.tokenize(example.prompt)
        n_tokens = len(tokens)
        n_most = Budget(AUTO.most, 0).kept(n_tokens, policy.min_kept)
        budget = auto_budget(AUTO, policy, n_tokens, n_most, (0, 0, 0))
        n_cells = round_cells(n_tokens + _ANSWER_CELLS)
        likelihood = replace(example, max_new_tokens=0)
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, self._dequant) as session:
            window = policy.window_of(n_tokens, budget.n_window)
            replay = Replay(session, record(session, tokens, window, policy.weights_of(window)))

            def nll(n_kept: int) -> tuple[float, int | None]:
                late = _Settled(n_kept, n_most, budget.n_window)
                report = prefill(replay, tokens, policy, n_most, late=late)
                return measure(model, ctx, n_tokens, task, likelihood).nll, report.selection_layer

            nll_most, layer = nll(n_most)
            numbers = [budget.n_least + round(few * (n_most - budget.n_least)) for few in FEW]
            nlls = tuple(nll(n_kept)[0] for n_kept in numbers)
            found = self._peaks(replay, tokens, window, model.n_layer - 1 if layer is None else layer)
        kept = tuple(n_kept / n_tokens for n_kept in numbers)
        return Seen(task.name, found, nlls, nll_most, kept, n_most / n_tokens)

    def _peaks(self, replay: Replay, tokens: Sequence[int], window: int, last: int) -> Doubles:
        """Of the layers up to the last one that can decide."""
        found: list[Doubles] = []
        weights = self._policy.weights_of(window)
        replay.rank_by("attention")
        replay.begin(tokens, window)
        replay.set_window(window, weights)
        try:
            for layer, itself in enumerate(replay.sliding[: last + 1]):
                reads = not itself and layer >= len(replay.sliding) // _EARLIEST
                for _ in replay.running(1, reads):
                    pass
                of_heads = None
                if reads:
                    queries, keys = replay.queries(), replay.keys()
                    if self.scale is None:
                        self.scale = _scale(queries, keys, replay.scores(), weights)
                    of_heads = peaks(head_attention(queries, keys, self.scale), self._policy.first_kept)
                found.append(np.empty(0) if of_heads is None else of_heads)
        finally:
            replay.abort()
        table = np.full((len(replay.sliding), max(1, *(len(one) for one in found))), np.nan)
        for layer, of_layer in enumerate(found):
            table[layer, : len(of_layer)] = of_layer
        return table


def _after(n_before: int, n_all: int, progress: Progress | None) -> Callable[[int], object]:
    """Progress of a part, which begins after n_before prompts of n_all."""
    return lambda done: progress and progress(n_before + done, n_all)


def _scale(queries: Floats, keys: Floats, scores: Floats, weights: Floats | None) -> float:
    """The factor with which products of queries and keys give these scores best: some models scale queries before."""
    factors = (1.0, queries.shape[-1] ** -0.5)
    return min(factors, key=lambda scale: float(np.abs(window_scores(queries, keys, scale, weights) - scores).max()))
