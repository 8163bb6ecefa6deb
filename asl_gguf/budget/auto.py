"""`auto`: the budget follows the question. Few tokens for what stands in one place, many for what does not.

A policy that selects tokens asks for the number when it has the scores of its selection layer. Layers up to there hold as
many rows as the upper limit allows, and give those beyond the chosen number back: one prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..native.bindings import session_info
from ..policies import Policy
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
    """Where a model's readings part (docs/POLICIES.md has how they were found). Pairs: from the first figure to the second one
    the budget goes from one limit to the other."""

    layer: int
    """that is read"""
    document: float
    """less of the attention on the document: the answer has to be looked for; more: the prompt goes on with what stands there"""
    found: tuple[float, float]
    """peak, looking: from all that the upper limit allows to the least"""
    chained: tuple[float, float]
    """peak, going on: from the least to all. What all of a head sees at once leads on to something else, as in a chain"""

    def need(self, reading: Reading) -> float:
        """How far the budget is to go from the lower limit (0) to the upper one (1)."""
        if reading.document < self.document:
            return 1 - _ramp(reading.peak, *self.found)
        return _ramp(reading.peak, *self.chained)


CALIBRATED = {(30, 3, 64): Thresholds(layer=18, document=0.11, found=(0.925, 0.955), chained=(0.985, 0.996))}
"""layers, KV heads and elements of a K head of a model -> its thresholds. SmolLM2-135M"""


def _ramp(value: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, (value - begin) / (end - begin)))


class AutoBudget:
    """The budget of one prompt: reads one layer, and chooses from that.

    Args:
        name: of the budget, as it was written.
        n_most: tokens to keep at most.
        n_sink: first tokens that are no part of the document.
        thresholds: of the model; None: there are none.
    """

    def __init__(self, name: str, n_least: int, n_most: int, n_sink: int, thresholds: Thresholds | None) -> None:
        self.n_least = n_least
        self._n_most, self._n_sink, self._thresholds = n_most, n_sink, thresholds
        self._reading: Reading | None = None
        self._name = name
        self.choice = f"{name}: the upper limit, as no layer selected tokens"
        """what was chosen, and why"""

    def see(self, scores: LayerScores) -> None:
        """Reads the layer that thresholds are known for."""
        if self._thresholds is not None and scores.layer == self._thresholds.layer:
            self._reading = read(scores, self._n_sink)

    def choose(self) -> int:
        """Tokens to keep."""
        n_kept, why = self._n_most, "the upper limit: no thresholds are known for this model"
        if self._thresholds is not None and self._reading is None:
            why = f"the upper limit: layer {self._thresholds.layer} could not be read"
        elif self._thresholds is not None and self._reading is not None:
            n_kept = self.n_least + round(self._thresholds.need(self._reading) * (self._n_most - self.n_least))
            place = f"{self._reading.peak:.1%} of that in one place"
            why = f"{self._reading.document:.1%} of the attention in layer {self._thresholds.layer} is on the document, {place}"
        self.choice = f"{self._name}: {n_kept:,} tokens, {why}"
        return n_kept


def thresholds_of(info: session_info) -> Thresholds | None:
    """Those of a loaded model; None: there are none."""
    return CALIBRATED.get((info.n_layer, info.n_head_kv, info.n_embd_head_k))


def prompt_budget(
    auto: Auto, policy: Policy, n_tokens: int, n_most: int, thresholds: Thresholds | None, n_protected: int = 0
) -> AutoBudget:
    """The budget of a prompt of n_tokens, of which n_most are kept at most."""
    least = policy.least_with(n_protected) if n_protected else policy.min_kept
    n_least = min(n_most, max(math.ceil(auto.least * n_tokens - 1e-9), _LEAST_TOKENS, least))
    return AutoBudget(auto.value, n_least, n_most, policy.first_kept, thresholds)


class AutoRule(BudgetRule):
    """Between two shares of the prompt, by what its end looks for. Models without thresholds get the larger one."""

    def __init__(self, auto: Auto, context: BudgetContext) -> None:
        self._auto = auto
        self._most = ShareRule(Budget(auto.most, auto.min_prompt), context)
        self._thresholds: Thresholds | None = None
        self._budget: AutoBudget | None = None  # of the prompt at hand
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
        self._thresholds = thresholds_of(info)

    def late(self, n_tokens: int, n_protected: int) -> LateBudget | None:
        policy, n_most = self.context.policy, self.kept(n_tokens)
        if not policy.drops or n_most == n_tokens:
            return None
        self._budget = prompt_budget(self._auto, policy, n_tokens, n_most, self._thresholds, n_protected)
        return self._budget

    def annotate(self, report: PrefillReport) -> PrefillReport:
        budget, self._budget = self._budget, None
        return replace(report, budget_choice=budget.choice if budget is not None and report.pruned else None)
