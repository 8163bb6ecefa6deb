"""The budget of one request: what its `asl` object asks for, never more than the server's flags allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from ..budget.auto import AutoRule
from ..budget.late import Shape
from ..budget.rule import BudgetContext, BudgetRule, ShareRule
from ..budget.share import Budget
from ..budget.targets import Auto, check_budget
from ..errors import OptionError
from ..models.calibration import calibrated, cut_of
from ..native.bindings import session_info
from ..policies import LateBudget
from ..policies.protect import ROLES
from ..report import PrefillReport
from .options import Options, parse_auto, parse_policy


def _budget(value: Any) -> float | int | Auto:
    if isinstance(value, str) and len(value) <= _LONGEST_NAME:
        try:
            return parse_auto(value)
        except OptionError as err:
            raise OptionError(f"asl: budget: {err}") from err
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(
            f"asl: expected budget to be a share such as 0.2, a number of tokens or auto, got {value!r:.60}"
        )
    if value > _MOST_TOKENS:
        raise OptionError(f"asl: expected budget to be a share or a number of tokens, got {value!r:.60}")
    return Budget(value).value


def _policy(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise OptionError(f"asl: expected policy to be a name, got {value!r:.60}")
    parse_policy(value)
    return value


def _protect(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or any(name not in ROLES for name in names):
        raise OptionError(f"asl: expected protect to be some of {', '.join(ROLES)}, got {value!r:.60}")
    return tuple(names)


def _guard(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise OptionError(f"asl: expected guard to be a share of the attention in (0, 1], got {value!r:.60}")
    return float(value)


def _full_kv(value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"asl: expected full_kv to be true or false, got {value!r:.60}")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "budget": _budget,
    "policy": _policy,
    "protect": _protect,
    "guard": _guard,
    "full_kv": _full_kv,
}
_NAMES = ", ".join(_READERS)
_MOST_TOKENS = 2**31 - 1
_LONGEST_NAME = 200


@dataclass(frozen=True)
class RequestOptions:
    """A request's `asl` object."""

    budget: float | int | Auto | None = None
    policy: str | None = None
    protect: tuple[str, ...] | None = None
    guard: float | None = None
    full_kv: bool | None = None
    """False: K/V in host memory neither serve this prompt nor remember it"""

    @classmethod
    def parse(cls, text: str) -> RequestOptions:
        """Reads the options from JSON. An empty text is no object."""
        return cls.of(json.loads(text) if text else {})

    @classmethod
    def of(cls, given: Any) -> RequestOptions:
        """Reads the options from what stands under `asl`.

        Raises:
            OptionError: it is no object, a name is unknown, or a value is outside its domain.
        """
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise OptionError(f"asl: expected an object with some of {_NAMES}, got {json.dumps(given):.60}")
        if unknown := sorted(set(given) - {field.name for field in fields(cls)}):
            raise OptionError(f"asl: expected some of {_NAMES}, got {unknown[0]!r:.60}")
        found = {name: _READERS[name](value) for name, value in given.items() if value is not None}
        return cls(**found)


@dataclass(frozen=True)
class CappedRule(BudgetRule):
    """What a request asks for, under a limit."""

    wanted: BudgetRule
    limit: BudgetRule
    context: BudgetContext

    @property
    def fixed(self) -> bool:  # type: ignore[override]
        return self.wanted.fixed

    @property
    def n_cells(self) -> int:
        return self.limit.n_cells

    def kept(self, n_tokens: int) -> int:
        if not self.context.policy.drops:
            return self.limit.kept(n_tokens)
        least = self.context.policy.min_kept
        return min(n_tokens, max(least, min(self.wanted.kept(n_tokens), self.limit.kept(n_tokens))))

    def with_protected(self, n_kept: int, n_tokens: int, n_protected: int) -> int:
        """Protected tokens are kept, beyond the budget too: a slot has cells for them or the prompt is refused."""
        return min(n_tokens, max(n_kept, self.context.policy.least_with(n_protected))) if n_protected else n_kept

    def remedy(self, n_cells: int, n_answer: int) -> str:
        return "start the server with a larger --asl-room or --asl-budget, or protect less"

    def bind(self, info: session_info) -> None:
        """Every model will do."""

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> LateBudget | None:
        return self.wanted.late(n_tokens, n_kept, n_protected, shape)

    def annotate(self, report: PrefillReport) -> PrefillReport:
        return self.wanted.annotate(report)


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
        self._options, self._budget = options, options.budget
        self._context = BudgetContext(
            path, n_ctx, policy, options.room, guarded=options.guard is not None, cut=cut_of(policy, path)
        )

    def server(self) -> BudgetRule:
        """The server's own, a new one for each prompt: some remember what they chose until it is reported."""
        return self._make(self._budget, self._context)

    def of(self, request: RequestOptions) -> BudgetRule:
        """The server's, or what the request asks for under it.

        Raises:
            OptionError: the policy does not keep to this budget.
        """
        context = self._context if request.policy is None else self._under(request.policy)
        wanted = self._budget if request.budget is None else request.budget
        return CappedRule(self._make(wanted, context), self.server(), context)

    def _make(self, value: float | int | Auto, context: BudgetContext) -> BudgetRule:
        budget = self._options.make_budget(value)
        check_budget(budget, context.policy)
        return AutoRule(budget, context) if isinstance(budget, Auto) else ShareRule(budget, context)

    def _under(self, name: str) -> BudgetContext:
        policy, _ = calibrated(name, self._path)
        return replace(self._context, policy=policy, cut=cut_of(policy, self._path))
