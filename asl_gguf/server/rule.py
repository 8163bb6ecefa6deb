"""The budget of one request: what its `asl` object asks for, never more than the server's flags allow."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..budget.late import Shape, fixed_budget
from ..budget.rule import BudgetContext, BudgetRule, ShareRule
from ..budget.share import Budget
from ..errors import OptionError
from ..models.calibration import calibrated
from ..native.bindings import session_info
from ..policies import LateBudget, Policy
from .options import Options, parse_policy


@dataclass(frozen=True)
class RequestOptions:
    """A request's `asl` object."""

    budget: float | int | None = None
    policy: str | None = None

    @classmethod
    def parse(cls, text: str) -> RequestOptions:
        """From JSON; an empty text is no object.

        Raises:
            OptionError: it is no object, a name is unknown, or a value is outside its domain.
        """
        given: Any = json.loads(text) if text else {}
        if not isinstance(given, dict):
            raise OptionError(f"asl: expected an object with budget and policy, got {text}")
        if unknown := sorted(set(given) - {"budget", "policy"}):
            raise OptionError(f"asl: expected budget and policy, got {unknown[0]!r}")
        budget, policy = given.get("budget"), given.get("policy")
        if budget is not None:
            Budget(budget)
        if policy is not None:
            if not isinstance(policy, str):
                raise OptionError(f"asl: expected policy to be a name, got {policy!r}")
            parse_policy(policy)
        return cls(budget, policy)


@dataclass(frozen=True)
class CappedRule(BudgetRule):
    """What a request asks for, under a limit."""

    wanted: Budget
    limit: ShareRule
    context: BudgetContext

    @property
    def n_cells(self) -> int:
        return self.limit.n_cells

    def kept(self, n_tokens: int) -> int:
        if not self.context.policy.drops:
            return self.limit.kept(n_tokens)
        least = self.context.policy.min_kept
        return min(n_tokens, max(least, min(self.wanted.kept(n_tokens, least), self.limit.kept(n_tokens))))

    def bind(self, info: session_info) -> None:
        """Every model will do."""

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> LateBudget | None:
        return fixed_budget(self.context.policy, n_tokens, n_kept, shape)


class Rules:
    """The rule of each request.

    Args:
        options: the server's.
        path: GGUF file.
        n_ctx: longest prompt + answer of a slot in tokens.
    """

    def __init__(self, options: Options, path: str, n_ctx: int) -> None:
        self._path = path
        policy, found = calibrated(options.given_policy, path)
        self.calibration = found.summary if found else None
        assert options.budget is not None  # there is no engine then
        context = BudgetContext(path, n_ctx, policy, options.room, guarded=options.guard is not None)
        self.server = ShareRule(Budget(options.budget, options.min_prompt), context)

    def of(self, request: RequestOptions) -> BudgetRule:
        """The server's, unless the request asks for something else."""
        if request.budget is None and request.policy is None:
            return self.server
        policy = self.server.context.policy if request.policy is None else self._policy(request.policy)
        wanted = self.server.budget.value if request.budget is None else request.budget
        context = replace(self.server.context, policy=policy)
        budget = Budget(wanted, self.server.budget.min_prompt)
        if isinstance(wanted, int):
            budget.check(policy.min_kept)
        return CappedRule(budget, self.server, context)

    def _policy(self, name: str) -> Policy:
        return calibrated(name, self._path)[0]
