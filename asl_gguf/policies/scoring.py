"""From attention to token scores: the part that ASL, SnapKV and FastKV share.

Defaults are the published scoring. On small models it keeps the head of a number and loses its tail; the
remedies are parameters here (docs/POLICIES.md has the evidence): sinks leave the ranking, each KV head
counts alike, a score reaches forward over a span, and the newest queries count most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import ranking
from .contract import Floats, Indices, LayerScores, Policy
from .parameters import is_number, require, require_int
from .ranking import fixed_tokens, keep_best


@dataclass(frozen=True)
class ScoringPolicy(Policy):
    """A policy that ranks tokens by the window's attention."""

    kernel_size: int = 7
    """width of the average pooling over neighbouring tokens, odd"""
    n_sink: int = 0
    """first tokens of the prompt that are always kept and do not enter the ranking"""
    normalise_heads: bool = False
    """divide each KV head's scores by their sum before heads are added up"""
    span_forward: int = 0
    """tokens after an attended one that inherit its score"""
    span_back: int = 0
    """tokens before an attended one that inherit its score"""
    back_room: int = 0
    """tokens to keep from which on a score reaches back in full. Of fewer, a share does, which falls with their square:
    what follows the next attended token is worth more than what stands before this one"""
    half_life: float | None = None
    """a query that is this many tokens older than another counts half as much; None: all of the window alike"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.kernel_size, "kernel_size", 1)
        require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        for name in ("n_sink", "span_forward", "span_back", "back_room"):
            require_int(getattr(self, name), name, 0)
        if self.half_life is not None:
            valid = is_number(self.half_life) and self.half_life > 0
            require(valid, "half_life", "a number of tokens above 0, or None", self.half_life)

    @property
    def first_kept(self) -> int:
        return self.n_sink

    @property
    def min_kept(self) -> int:
        return self.window + self.n_sink + 1

    def weights_of(self, window: int) -> Floats | None:
        if self.half_life is None:
            return None
        return np.exp2(-np.arange(window - 1, -1, -1) / self.half_life).astype(np.float32)

    def back_share_of(self, n_kept: int) -> float:
        """Share of a score that reaches back where n_kept tokens are chosen, in (0, 1]."""
        return 1.0 if n_kept >= self.back_room else (n_kept / self.back_room) ** 2

    def head_scores(self, scores: LayerScores) -> Floats:
        """Pooled scores float32 [n_head_kv, n - n_sink - window] of the tokens that compete."""
        n_competing = scores.n_current - scores.window
        pooled = ranking.average_pool(scores.attention[:, :n_competing], self.kernel_size)[:, self.n_sink :]
        if self.normalise_heads:
            pooled = pooled / np.maximum(pooled.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        return pooled

    def choose(
        self,
        competing: Floats,
        scores: LayerScores,
        n_kept: int,
        among: Indices | None = None,
        first: Indices | None = None,
        n_question: int = 0,
        n_asking: int = 0,
    ) -> Indices:
        """The n_kept tokens with the best scores, sinks, window and protected tokens among them.

        Args:
            competing: [..., n - n_sink - window], before the span.
            among: int32 [..., at least n_kept], the only tokens to choose from, the fixed ones among them; None: all.
            first: int32 [at most n_kept], tokens that come before others, the fixed ones among them.
            n_question: so many last tokens, but for the fixed ones, come after all others; a tenth of the current ones at most.
            n_asking: so many of these, the best, rank as they are.

        Returns:
            int32 [..., n_kept], in order of position
        """
        share = self.back_share_of(n_kept)
        spanned = ranking.span_maximum(competing, self.span_back, self.span_forward, share)
        fixed = fixed_tokens(scores, self.n_sink, scores.window)
        ranked = ranking.padded(spanned, self.n_sink, scores.window, 0.0)
        if n_question:
            question = ranked[..., scores.n_current - min(n_question, scores.n_current // 10) : -scores.window]
            last = ranking.order_by_score(question)[..., n_asking:]
            np.put_along_axis(question, last, np.float32(-0.5), axis=-1)
        if first is not None:
            ranked[..., first] += ranked.max() + 1
        if among is not None:
            left = np.full_like(ranked, -1)  # less than any score, and than the question's
            np.put_along_axis(left, among, np.take_along_axis(ranked, among, axis=-1), axis=-1)
            ranked = left
        return keep_best(ranked, fixed, n_kept)


@dataclass(frozen=True)
class SelectingPolicy(ScoringPolicy):
    """A policy that at one layer keeps the best tokens for all deeper ones, and K/V rows as SnapKV does."""

    cache_k: int | Literal["select_k", "all"] = "select_k"
    """K/V rows that a layer keeps per KV head (of the tokens it sees): as many as tokens are selected, all, or a
    number. More than are selected makes the layers up to the selection layer larger than the deeper ones"""
    evidence_layers: int = 1
    """newest layers whose scores are added up to select tokens: neighbouring layers differ in what they look for"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.evidence_layers, "evidence_layers", 1)
        if self.cache_k not in ("select_k", "all"):
            require_int(self.cache_k, "cache_k", self.window + self.n_sink + 1)

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        return self.n_rows(n_tokens, n_kept)

    def n_rows(self, n_current: int, n_kept: int) -> int:
        """K/V rows that a layer keeps when it sees n_current tokens."""
        if self.cache_k == "select_k":
            return min(n_kept, n_current)
        return n_current if self.cache_k == "all" else min(int(self.cache_k), n_current)

    def evidence(self) -> Callable[[Floats], Floats]:
        """A function that takes each layer's token scores and returns the sum over the newest evidence_layers."""
        newest: deque[Floats] = deque(maxlen=self.evidence_layers)

        def add(per_token: Floats) -> Floats:
            newest.append(per_token)
            return per_token if len(newest) == 1 else np.sum(newest, axis=0)

        return add

    def rows(self, per_head: Floats, scores: LayerScores, n_kept: int) -> Indices | None:
        """Rows of this layer, int32 [n_head_kv, n_rows]; None: all."""
        n_rows = self.n_rows(scores.n_current, n_kept)
        return None if n_rows == scores.n_current else self.choose(per_head, scores, n_rows)

    def fewer_rows(
        self, scores: LayerScores, held: Indices | None, n_kept: int, tokens: Indices | None = None
    ) -> Indices | None:
        n_rows = self.n_rows(scores.n_current, n_kept)
        if n_rows >= (scores.n_current if held is None else held.shape[-1]):
            return None
        per_head = self.head_scores(scores)
        return self.choose(per_head, scores, n_rows, held, first=tokens)
