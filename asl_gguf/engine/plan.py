"""What would happen to a prompt, before anything does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..policies.contract import Indices

Action = Literal["append", "evaluate", "prefill", "turn"]
"""append: llama.cpp evaluates what the cells do not hold, and nothing is pruned. evaluate: it evaluates the whole prompt.
prefill: the prompt runs layer by layer and is pruned. turn: its new tokens run layer by layer over the K/V that the
conversation keeps, and only they are pruned."""

UNASKED = (
    "the K/V that this question goes on from were chosen before it was known, and what it needs may be among those that "
    "were dropped; with asl_full_kv=True every question selects again"
)
"""the reason in reports of prompts that go on from `prefill` or `load_prompt` without K/V of all tokens"""


@dataclass(frozen=True)
class Request:
    """A prompt and what its answer needs."""

    tokens: Sequence[int]
    """token ids of the whole prompt"""
    max_tokens: int | None = None
    """of the answer; None: as many as there are cells for, at least 1"""
    protected: Callable[[], Indices] | None = None
    """indices of tokens that are kept whatever their scores, increasing int32; called if tokens are dropped"""

    @property
    def n_answer(self) -> int:
        """Cells that the answer needs at least."""
        return self.max_tokens or 1


@dataclass(frozen=True)
class Plan:
    """What `Sequence.start` would do with a prompt, and why."""

    action: Action
    tokens: tuple[int, ...]
    """of the whole prompt"""
    n_past: int = 0
    """tokens at its start that are in the cells already, kept or not"""
    n_kept: int = 0
    """tokens to keep of the prompt, or of the turn"""
    n_most: int = 0
    """the same, at most, where a guard asks for more"""
    protected: Indices | None = None
    """indices among the tokens that run"""
    reason: str | None = None
    """why nothing is pruned, or why it is done again"""

    @property
    def runs(self) -> bool:
        """Whether tokens run layer by layer."""
        return self.action in ("prefill", "turn")

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The tokens that are computed."""
        return self.tokens[self.n_past :]
