"""ASL, Adaptive Selection Layer: https://arxiv.org/abs/2601.07667"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

from .. import reference
from ..types import Decision, Indices, LayerScores, Prompt
from .base import Observer, require, require_int
from .scoring import ScoringPolicy


@dataclass(frozen=True)
class ASL(ScoringPolicy):
    """Keeps the best tokens of the first layer at which the ranks of the leading tokens have settled.

    Layers up to the selection layer keep their K/V per KV head as SnapKV does; deeper layers see the
    kept tokens only.
    """

    name: ClassVar[str] = "asl"

    min_layer: int | None = None
    """first monitored layer (L_min); None: min_depth of the model's layers"""
    min_depth: float = 0.4
    """share of the layers below the first monitored one, unless min_layer says otherwise"""
    obs_layers: int = 8
    """newest layers whose ranks are compared (L_obs)"""
    obs_tokens: int | None = 64
    """leading tokens of each layer whose ranks are compared; None: as many as are kept, as published"""
    tau: float = 0.45
    """selection fires when the variance falls below tau times its reference"""
    variance_reference: Literal["peak", "first"] = "peak"
    """reference of the variance: its largest value so far, or its value at min_layer as published"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.obs_layers, "obs_layers", 2)
        if self.min_layer is not None:
            require_int(self.min_layer, "min_layer", self.obs_layers - 1)
        if self.obs_tokens is not None:
            require_int(self.obs_tokens, "obs_tokens", 1)
        numbers = isinstance(self.tau, (int, float)) and isinstance(self.min_depth, (int, float))
        require(numbers and self.tau > 0, "tau", "a number above 0", self.tau)
        require(numbers and 0 <= self.min_depth < 1, "min_depth", "a share in [0, 1)", self.min_depth)
        require(
            self.variance_reference in ("peak", "first"),
            "variance_reference",
            "'peak' or 'first'",
            self.variance_reference,
        )

    def start(self, prompt: Prompt) -> Observer:
        min_layer = self.min_layer if self.min_layer is not None else max(1, round(prompt.n_layer * self.min_depth))
        n_best = prompt.n_kept - self.n_sink - self.window
        n_leading = min(self.obs_tokens or n_best, n_best)
        history: deque[Indices] = deque(maxlen=min(self.obs_layers, min_layer + 1))
        base: float | None = None

        def observe(scores: LayerScores) -> Decision:
            nonlocal base
            per_head = self.head_scores(scores)
            per_token = per_head.sum(axis=0)
            history.append(reference.ranks(per_token))
            rows = self.choose(per_head, scores, prompt.n_kept)
            if scores.layer < min_layer:
                return Decision(rows)
            variance = reference.rank_variance(list(history), n_leading)
            if base is None or (self.variance_reference == "peak" and variance > base):
                base = variance
            ratio = variance / base if base > 0 else 1.0
            settled = ratio < self.tau
            tokens = self.choose(per_token, scores, prompt.n_kept) if settled else None
            return Decision(rows, tokens, variance, ratio)

        return observe


@dataclass(frozen=True)
class PublishedASL(ASL):
    """ASL with the paper's scoring and rule: L_min 10 of 32 layers, L_obs 8, tau 0.3, window 32, kernel 7."""

    name: ClassVar[str] = "asl-published"

    n_sink: int = 0
    normalise_heads: bool = False
    span_forward: int = 0
    span_back: int = 0
    min_depth: float = 10 / 32
    obs_tokens: int | None = None
    tau: float = 0.3
    variance_reference: Literal["peak", "first"] = "first"
