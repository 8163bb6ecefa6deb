"""How many tokens of a prompt are kept, and how many KV cells that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import OptionError, shown

ROOM = 1024
"""KV cells beside the budget, unless told otherwise"""
_CELL_STEP = 256  # llama.cpp rounds n_ctx up to it


@dataclass(frozen=True)
class Budget:
    """`asl_budget`: a float in (0, 1] is a share of the prompt, an int a number of tokens."""

    value: float | int
    min_prompt: int = 256
    """a share leaves prompts up to this length alone: they would gain nothing"""

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(
                f"asl_budget: expected a float in (0, 1], an int of at least 1 token, or None, got {shown(value)}"
            )
        if isinstance(value, float) and not 0.0 < value <= 1.0:
            raise OptionError(f"asl_budget: expected a share in (0, 1] or an int number of tokens, got {shown(value)}")
        if isinstance(value, int) and value < 1:
            raise OptionError(f"asl_budget: expected at least 1 token, got {shown(value)}")
        if isinstance(self.min_prompt, bool) or not isinstance(self.min_prompt, int) or self.min_prompt < 0:
            raise OptionError(f"asl_min_prompt: expected a number of tokens, 0 or more, got {shown(self.min_prompt)}")

    def check(self, at_least: int) -> None:
        """Raises OptionError if a budget in tokens is smaller than at_least."""
        if isinstance(self.value, int) and self.value < at_least:
            raise OptionError(
                f"asl_budget: expected at least {at_least} tokens (the policy always keeps its window and sinks "
                f"and needs one more), got {shown(self.value)}; raise asl_budget or use a policy with a smaller window"
            )

    def kept(self, n_tokens: int, at_least: int) -> int:
        """Tokens to keep of a prompt: the whole prompt where it fits the budget anyway.

        Args:
            n_tokens: tokens of the prompt.
            at_least: fewest tokens the policy can keep (`Policy.min_kept`).

        Raises:
            OptionError: a budget in tokens is smaller than at_least.
        """
        if isinstance(self.value, int):
            self.check(at_least)
            return min(self.value, n_tokens)
        if n_tokens <= self.min_prompt:
            return n_tokens
        return min(n_tokens, max(math.floor(self.value * n_tokens + 1e-9), at_least))

    def cells(self, n_ctx: int, at_least: int, room: int, max_rows: Callable[[int, int], int] | None = None) -> int:
        """KV cells of a decode context for prompts up to n_ctx tokens.

        Args:
            room: cells for the answer and later turns.
            max_rows: most rows of a layer for (n_tokens, n_kept); None: n_kept.
        """
        share = isinstance(self.value, float)
        n_kept = self.kept(n_ctx, at_least)
        n_rows = max_rows(n_ctx, n_kept) if max_rows else n_kept
        longest = max(n_rows, min(self.min_prompt, n_ctx) if share else 0)
        return min(round_cells(n_ctx), round_cells(longest + room))


def round_cells(n_cells: int) -> int:
    """n_cells rounded up as llama.cpp rounds n_ctx."""
    return -(-n_cells // _CELL_STEP) * _CELL_STEP
