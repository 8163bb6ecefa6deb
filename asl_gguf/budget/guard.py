"""`asl_guard`: a prompt whose kept K/V hold too little of the window's attention gets a larger budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GROWTH = 2
"""factor from one attempt to the next"""
CAP = 4
"""largest budget short of the full cache, in budgets, unless asl_decode_ctx says otherwise"""


@dataclass(frozen=True)
class Guard:
    """Which budgets are tried, one after the other, until kept rows hold enough."""

    share: float | None
    """of the window's attention, mean over the layers, in (0, 1]; None: one attempt"""
    cap: int | None = CAP
    """largest budget, in budgets; None: whatever fits"""

    def attempts(self, n_kept: int, n_tokens: int, n_most: int) -> Iterator[tuple[int, float | None]]:
        """Budgets in tokens, each with the share that its rows must hold; None for the last, which holds what it holds.

        After the largest budget comes the full cache, if the prompt fits n_most.

        Args:
            n_kept: the first budget.
            n_most: largest number of tokens to keep.
        """
        n_most = min(max(n_most, n_kept), n_tokens)
        largest = self.largest(n_kept, n_most)
        last = n_most if n_most == n_tokens else largest
        while self.share is not None and n_kept < last:
            yield n_kept, self.share
            n_kept = min(n_kept * GROWTH, largest) if n_kept < largest else n_most
        yield n_kept, None

    def largest(self, n_kept: int, n_most: int) -> int:
        """The largest budget in tokens, of those that fit n_most."""
        return n_most if self.cap is None else min(self.cap * n_kept, n_most)
