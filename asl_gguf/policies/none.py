"""The full KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .contract import Decision, LayerScores, Observer, Policy, Prompt


@dataclass(frozen=True)
class Full(Policy):
    """Keeps everything."""

    name: ClassVar[str] = "none"
    drops: ClassVar[bool] = False

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        return n_tokens

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return False

    def first_selection(self, n_layer: int) -> int | None:
        return None

    def start(self, prompt: Prompt) -> Observer:
        def observe(scores: LayerScores) -> Decision:
            return Decision()

        return observe
