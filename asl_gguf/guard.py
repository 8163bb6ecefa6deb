"""`asl_guard`: a prompt whose kept K/V hold too little of the window's attention gets a larger budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import engine
from .errors import AttentionMassError
from .policies import Policy
from .session import Session
from .types import Indices, PrefillReport

GROWTH = 2
"""factor from one attempt to the next"""
CAP = 4
"""largest budget short of the full cache, in budgets, unless asl_decode_ctx says otherwise"""


def prefill(
    session: Session,
    tokens: Sequence[int],
    policy: Policy,
    n_kept: int,
    *,
    guard: float | None,
    n_most: int,
    cap: int | None = CAP,
    reason: str | None = None,
    protected: Indices | None = None,
) -> PrefillReport:
    """`engine.prefill` with ever larger budgets, until the mean attention mass of the layers reaches the guard.

    An attempt ends at the first layer, from a third of the depth on, where the mean so far is too low. After the largest
    budget the full cache is taken if the prompt fits n_most; else that budget, whatever it holds.

    Args:
        guard: share of the window's attention, in (0, 1]; None: one attempt.
        n_most: largest number of tokens to keep.
        cap: largest budget, in budgets; None: n_most.
    """
    attempts: list[tuple[int, float]] = []
    n_most = min(max(n_most, n_kept), len(tokens))
    largest = n_most if cap is None else min(cap * n_kept, n_most)
    while True:
        last = guard is None or n_kept >= (n_most if n_most == len(tokens) else largest)
        try:
            report = engine.prefill(
                session, tokens, policy, n_kept, reason=reason, protected=protected, guard=None if last else guard
            )
        except AttentionMassError as err:
            attempts.append((n_kept, err.mass))
            n_kept = min(n_kept * GROWTH, largest) if n_kept < largest else n_most
            reason = f"asl_guard: a smaller budget held {err.mass:.2f} of the window's attention, less than {guard}"
            continue
        return replace(report, guard_attempts=tuple(attempts))
