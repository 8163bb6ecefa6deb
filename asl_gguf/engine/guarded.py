"""A prefill that is done again with a larger budget where the kept K/V hold too little attention."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from ..budget.guard import Guard
from ..errors import AttentionMassError
from ..policies import Policy
from ..policies.contract import Indices, LateBudget
from ..report import PrefillReport
from .layers import Layers
from .prefill import prefill_slices


def guarded_slices(
    layers: Layers,
    tokens: Sequence[int],
    policy: Policy,
    n_kept: int,
    *,
    guard: Guard,
    n_most: int,
    reason: str | None = None,
    protected: Indices | None = None,
    late: LateBudget | None = None,
) -> Generator[None, None, PrefillReport]:
    """`prefill_slices` with the budgets of a guard, until the mean attention mass of the layers reaches its share.

    An attempt ends at the first layer, from a third of the depth on, where the mean so far is too low.

    Args:
        n_most: largest number of tokens to keep.
    """
    attempts: list[tuple[int, float]] = []
    for n_tried, share in guard.attempts(n_kept, len(tokens), n_most):
        try:
            report = yield from prefill_slices(
                layers, tokens, policy, n_tried, reason=reason, protected=protected, guard=share, late=late
            )
        except AttentionMassError as err:
            attempts.append((n_tried, err.mass))
            reason = f"asl_guard: a smaller budget held {err.mass:.2f} of the window's attention, less than {share}"
        else:
            return replace(report, guard_attempts=tuple(attempts))
    raise AssertionError("the last attempt has no share to miss")
