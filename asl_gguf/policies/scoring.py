"""From attention to token scores: the part that ASL, SnapKV and FastKV share.

The published scoring (kernel 7, no sinks, no normalisation, no span) keeps the head of a number and
loses its tail on small models. Three remedies, each a parameter (docs/LOG.md has the evidence):
sinks leave the ranking, each KV head counts alike, and a score reaches forward over a span.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import reference
from ..types import Floats, Indices, LayerScores
from .base import Policy, require, require_int


@dataclass(frozen=True)
class ScoringPolicy(Policy):
    """A policy that ranks tokens by the window's attention."""

    kernel_size: int = 7
    """width of the average pooling over neighbouring tokens, odd"""
    n_sink: int = 4
    """first tokens of the prompt that are always kept and do not enter the ranking"""
    normalise_heads: bool = True
    """divide each KV head's scores by their sum before heads are added up"""
    span_forward: int = 16
    """tokens after an attended one that inherit its score"""
    span_back: int = 3
    """tokens before an attended one that inherit its score"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.kernel_size, "kernel_size", 1)
        require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        for name in ("n_sink", "span_forward", "span_back"):
            require_int(getattr(self, name), name, 0)

    @property
    def min_kept(self) -> int:
        return self.window + self.n_sink + 1

    def head_scores(self, scores: LayerScores) -> Floats:
        """Pooled scores float32 [n_head_kv, n - n_sink - window] of the tokens that compete."""
        n_competing = scores.attention.shape[-1] - scores.window
        pooled = reference.average_pool(scores.attention[:, :n_competing], self.kernel_size)[:, self.n_sink :]
        if self.normalise_heads:
            pooled = pooled / np.maximum(pooled.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        return pooled

    def choose(self, competing: Floats, scores: LayerScores, n_kept: int) -> Indices:
        """The n_kept tokens with the best scores, sinks and window among them, in order of position.

        Args:
            competing: [..., n - n_sink - window], before the span.

        Returns:
            int32 [..., n_kept]
        """
        n_tokens = scores.attention.shape[-1]
        n_best = n_kept - self.n_sink - scores.window
        spanned = reference.span_maximum(competing, self.span_back, self.span_forward)
        best = reference.order_by_score(spanned)[..., :n_best] + self.n_sink
        fixed = np.concatenate([np.arange(self.n_sink), np.arange(n_tokens - scores.window, n_tokens)])
        fixed = np.broadcast_to(fixed, (*best.shape[:-1], fixed.size))
        return np.sort(np.concatenate([best, fixed], axis=-1), axis=-1).astype(np.int32)
