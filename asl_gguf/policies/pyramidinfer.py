"""PyramidInfer: https://arxiv.org/abs/2405.12532"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .contract import Decision, Floats, LayerScores, Observer, Policy, Prompt
from .parameters import is_number, require, require_int, require_share
from .ranking import fixed_tokens, keep_best


@dataclass(frozen=True)
class PyramidInfer(Policy):
    """Every layer keeps fewer tokens than the one before it, those that the newest ones attend to most.

    Only the kept tokens go deeper. The budget is the mean number of K/V rows over the layers: `decay` is the
    largest whose counts stay within it, unless it is given (the paper's is 0.9). With decay 0 the paper's schedule
    still keeps a third of the K/V; below that, the shares are raised to a power, which is ours. A budget below what
    min_context, recent_ratio and the first layer leave (2,048 tokens, 30 layers: 142 on the mean) is exceeded.
    """

    name: ClassVar[str] = "pyramidinfer"

    window: int = 1
    recent_ratio: float = 0.2
    """share of a layer's tokens, the newest ones, whose attention counts and which are always kept"""
    recent_weight: float = 1.2
    """factor on the newest token's attention; 1 for the oldest of the recent ones, linear between"""
    n_sink: int = 4
    """first tokens of the prompt that are always kept"""
    min_context: int = 64
    """tokens below which no layer falls"""
    decay: float | None = None
    """d of the share (1 - d) (cos(pi l / L) + 1) / 2 + d of layer l - 1's tokens that layer l keeps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.recent_ratio, "recent_ratio")
        require(
            is_number(self.recent_weight) and self.recent_weight > 0,
            "recent_weight",
            "a number above 0",
            self.recent_weight,
        )
        require_int(self.n_sink, "n_sink", 0)
        require_int(self.min_context, "min_context", 1)
        if self.decay is not None:
            require_share(self.decay, "decay", one=True)

    @property
    def first_kept(self) -> int:
        return self.n_sink

    @property
    def min_kept(self) -> int:
        return self.min_context

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        return n_tokens

    def first_selection(self, n_layer: int) -> int | None:
        return 0

    def window_of(self, n_current: int, n_kept: int) -> int:
        return self._n_recent(n_current)

    def _n_recent(self, n_current: int) -> int:
        return max(1, math.floor(n_current * self.recent_ratio))

    def weights_of(self, window: int) -> Floats | None:
        return np.linspace(1.0, self.recent_weight, window, dtype=np.float32)

    def counts(self, n_tokens: int, n_layer: int, decay: float, power: float = 1.0) -> list[int]:
        """Tokens that each layer keeps."""
        result, n_current = [], n_tokens
        for layer in range(n_layer):
            share = ((1 - decay) * (math.cos(math.pi * layer / n_layer) + 1) / 2 + decay) ** power
            floor = min(n_current, max(self.min_context, self._n_recent(n_current) + self.n_sink))
            n_current = max(floor, math.floor(n_current * share))
            result.append(n_current)
        return result

    def schedule(self, prompt: Prompt) -> list[int]:
        """Tokens that each layer keeps of this prompt: the most that the budget allows, or the least there is. Where some
        layers slide, the budget is the mean of the others."""
        if self.decay is not None:
            return self.counts(prompt.n_tokens, prompt.n_layer, self.decay)
        asked = prompt.full_layers or range(prompt.n_layer)
        allowed = prompt.n_kept * len(asked)

        def total(counts: list[int]) -> int:
            return sum(counts[layer] for layer in asked)

        # from the paper's schedules (decay from 1 to 0) on to steeper ones (power from 1 to 4096)
        low, high = -1.0, 1.0
        if total(self._counts_at(prompt, high)) <= allowed:
            return self._counts_at(prompt, high)
        for _ in range(40):
            middle = (low + high) / 2
            fits = total(self._counts_at(prompt, middle)) <= allowed
            low, high = (middle, high) if fits else (low, middle)
        return self._counts_at(prompt, low)

    def _counts_at(self, prompt: Prompt, at: float) -> list[int]:
        return self.counts(prompt.n_tokens, prompt.n_layer, max(at, 0.0), 4096.0 ** max(-at, 0.0))

    def start(self, prompt: Prompt) -> Observer:
        counts = self.schedule(prompt)

        def observe(scores: LayerScores) -> Decision:
            fixed = fixed_tokens(scores, self.n_sink, scores.window)
            n_kept = max(counts[scores.layer], fixed.size)
            if n_kept >= scores.n_current:
                return Decision()
            kept = keep_best(scores.attention.sum(axis=0), fixed, n_kept)
            return Decision(kept, kept, keep_asking=True)

        return observe
