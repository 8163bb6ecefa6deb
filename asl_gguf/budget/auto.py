"""`auto`: the budget follows the question. Few tokens for what stands in one place, many for what does not."""

from __future__ import annotations

from dataclasses import replace

from ..native.bindings import session_info
from ..report import PrefillReport
from .late import PromptBudget, Shape, auto_budget
from .rule import BudgetContext, BudgetRule, ShareRule
from .share import Budget
from .targets import Auto


class AutoRule(BudgetRule):
    """Between two shares of the prompt, by what its end looks for. Models without thresholds get the larger one."""

    fixed = False

    def __init__(self, auto: Auto, context: BudgetContext) -> None:
        self._auto = auto
        self._most = ShareRule(Budget(auto.most, auto.min_prompt), context)
        self._budget: PromptBudget | None = None  # of the prompt at hand
        self.context = context

    @classmethod
    def make(cls, auto: Auto, context: BudgetContext) -> AutoRule:
        """Raises OptionError if the policy does not decide late."""
        auto.check(context.policy)
        return cls(auto, context)

    @property
    def n_cells(self) -> int:
        """KV cells for the upper limit: layers hold so many rows until the budget is decided."""
        return self._most.n_cells

    def kept(self, n_tokens: int) -> int:
        """Tokens to keep at most."""
        return self._most.kept(n_tokens)

    def bind(self, info: session_info) -> None:
        """Every model will do."""

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> PromptBudget | None:
        if n_kept >= n_tokens or not self.context.policy.drops:
            return None
        self._budget = auto_budget(
            self._auto, self.context.policy, n_tokens, n_kept, shape, n_protected, self.context.cut
        )
        return self._budget

    def annotate(self, report: PrefillReport) -> PrefillReport:
        budget, self._budget = self._budget, None
        if budget is None or not report.pruned:
            return report
        return replace(report, budget_choice=f"{self._auto.value}: {budget.choice}")
