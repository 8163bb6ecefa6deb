"""SnapKV: https://arxiv.org/abs/2404.14469"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .contract import Decision, LayerScores, Observer, Prompt
from .scoring import ScoringPolicy


@dataclass(frozen=True)
class SnapKV(ScoringPolicy):
    """Every layer sees all tokens; afterwards each KV head keeps the K/V that the window attends to most."""

    name: ClassVar[str] = "snapkv"

    kernel_size: int = 5

    def first_selection(self, n_layer: int) -> int | None:
        return None

    def start(self, prompt: Prompt) -> Observer:
        def observe(scores: LayerScores) -> Decision:
            return Decision(self.choose(self.head_scores(scores), scores, prompt.n_kept))

        return observe
