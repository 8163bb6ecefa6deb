"""`auto`: the budget follows the question. Few tokens for what stands in one place, many for what does not.

A policy that selects tokens asks for the number when it has the scores of its selection layer. Layers up to there hold as
many rows as the upper limit allows, and give those beyond the chosen number back: one prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..native.bindings import session_info
from ..policies.contract import LateBudget, LayerScores
from ..policies.reading import Reading, read
from ..report import PrefillReport
from .rule import BudgetContext, BudgetRule, ShareRule
from .share import Budget
from .targets import Auto

_LEAST_TOKENS = 100
"""tokens to keep at least, whatever the lower limit: what one answer needs is a number of tokens, not a share"""


@dataclass(frozen=True)
class Thresholds:
    """Where a model's readings part, found by `docs/POLICIES.md`'s commands. Pairs: from the first figure to the second one
    the budget goes from one limit to the other."""

    document: float
    """less of the attention on the document: the answer has to be looked for; more: the prompt goes on with what stands there"""
    found: tuple[float, float]
    """peak, looking: from all that the upper limit allows to the least"""
    chained: tuple[float, float]
    """peak, going on: from the least to all. What all heads see at once leads on to something else, as in a chain"""

    def need(self, reading: Reading) -> float:
        """How far the budget is to go from the lower limit (0) to the upper one (1)."""
        if reading.document < self.document:
            return 1 - _ramp(reading.peak, *self.found)
        return _ramp(reading.peak, *self.chained)


CALIBRATED = {(30, 3, 64): Thresholds(document=0.12, found=(0.93, 0.97), chained=(0.985, 0.997))}
"""layers, KV heads and elements of a K head of a model -> its thresholds. SmolLM2-135M"""


def _ramp(value: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, (value - begin) / (end - begin)))


class AutoRule(BudgetRule):
    """Between two shares of the prompt, by what its end looks for. Models without thresholds get the larger one."""

    def __init__(self, auto: Auto, context: BudgetContext) -> None:
        self._auto = auto
        self._most = ShareRule(Budget(auto.most, auto.min_prompt), context)
        self._thresholds: Thresholds | None = None
        self._choice = ""  # for the prompt at hand
        self.context = context

    @classmethod
    def make(cls, auto: Auto, context: BudgetContext) -> AutoRule:
        """Raises OptionError if the policy does not decide late."""
        auto.check(context.policy)
        return cls(auto, context)

    @property
    def n_cells(self) -> int:
        """For the upper limit."""
        return self._most.n_cells

    def kept(self, n_tokens: int) -> int:
        """At most."""
        return self._most.kept(n_tokens)

    def bind(self, info: session_info) -> None:
        self._thresholds = CALIBRATED.get((info.n_layer, info.n_head_kv, info.n_embd_head_k))

    def late(self, n_tokens: int, n_protected: int) -> LateBudget | None:
        policy, n_most = self.context.policy, self.kept(n_tokens)
        self._choice = f"{self._auto.value}: the upper limit, as no layer selected tokens"
        if not policy.drops or n_most == n_tokens:
            return None
        n_least = max(math.ceil(self._auto.least * n_tokens), _LEAST_TOKENS, policy.min_kept)
        if n_protected:
            n_least = max(n_least, policy.least_with(n_protected))
        n_least = min(n_least, n_most)

        def choose(scores: LayerScores) -> int:
            n_kept, why = self._choose(read(scores, policy.first_kept), n_least, n_most)
            self._choice = f"{self._auto.value}: {n_kept:,} of {n_tokens:,} tokens, {why}"
            return n_kept

        return LateBudget(n_least, choose)

    def _choose(self, reading: Reading | None, n_least: int, n_most: int) -> tuple[int, str]:
        if reading is None:
            return n_most, "the upper limit: the prompt is too short to be read"
        figures = f"{reading.document:.3f} of the attention on the document, {reading.peak:.3f} of it in one place"
        if self._thresholds is None:
            return n_most, f"the upper limit: no thresholds are known for this model ({figures})"
        need = self._thresholds.need(reading)
        return n_least + round(need * (n_most - n_least)), figures

    def annotate(self, report: PrefillReport) -> PrefillReport:
        return replace(report, budget_choice=self._choice if report.pruned else None)
