"""ASL, Adaptive Selection Layer: https://arxiv.org/abs/2601.07667"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

from . import ranking
from .contract import Decision, Indices, LayerScores, Observer, Prompt
from .parameters import is_number, require, require_int, require_share, scaled_layer
from .scoring import SelectingPolicy


@dataclass(frozen=True)
class ASL(SelectingPolicy):
    """Keeps the best tokens of the first layer at which the ranks of the leading tokens have settled.

    Layers up to the selection layer keep their K/V per KV head as SnapKV does; deeper layers see the
    kept tokens only. Defaults are the paper's, with L_min given as a share of the depth.
    """

    name: ClassVar[str] = "asl"
    decides_late: ClassVar[bool] = True

    min_layer: int | None = None
    """first monitored layer (L_min); None: min_depth of the model's layers"""
    min_depth: float = 10 / 32
    """share of the layers below the first monitored one, unless min_layer says otherwise"""
    obs_layers: int = 8
    """newest layers whose ranks are compared (L_obs)"""
    obs_tokens: int | None = None
    """leading tokens of each layer whose ranks are compared; None: as many as are kept, as published"""
    tau: float = 0.3
    """selection fires when the variance falls below tau times its reference"""
    variance_reference: Literal["first", "peak", "random"] = "first"
    """reference of the variance: its value at min_layer as published, its largest value so far, or that of random ranks,
    with which min_layer itself may select"""

    n_question: int = 0
    """last tokens of a prompt that come after all others, but for the window and `LateBudget.n_asking`, where a chain or several
    answers are looked for with few tokens (`LateBudget.crowded`): a question's words attend to one another. A tenth of the
    prompt at most"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.n_question, "n_question", 0)
        require_int(self.obs_layers, "obs_layers", 2)
        if self.min_layer is not None:
            require_int(self.min_layer, "min_layer", self.obs_layers - 1)
        if self.obs_tokens is not None:
            require_int(self.obs_tokens, "obs_tokens", 1)
        require(is_number(self.tau) and self.tau >= 0, "tau", "a number of at least 0", self.tau)
        require_share(self.min_depth, "min_depth")
        known = self.variance_reference in ("peak", "first", "random")
        require(known, "variance_reference", "'peak', 'first' or 'random'", self.variance_reference)

    def _first_monitored(self, n_layer: int) -> int:
        return self.min_layer if self.min_layer is not None else scaled_layer(self.min_depth, n_layer)

    def first_selection(self, n_layer: int) -> int | None:
        # the ratio of the first monitored layer is 1, unless the reference is that of random ranks
        waits = self.tau <= 1 and self.variance_reference != "random"
        return min(self._first_monitored(n_layer) + waits, n_layer - 1)

    def _base(self, base: float | None, variance: float, n_ranked: int) -> float:
        """The reference after one more layer, from that before it."""
        if self.variance_reference == "random":
            return ranking.random_rank_variance(n_ranked)
        return variance if base is None or (self.variance_reference == "peak" and variance > base) else base

    def start(self, prompt: Prompt) -> Observer:
        min_layer = self._first_monitored(prompt.n_layer)
        prompt.require_layer(self.min_layer, "min_layer")
        n_best = prompt.n_kept - self.n_sink - self.window_of(prompt.n_tokens, prompt.n_window)
        n_leading = min(self.obs_tokens or n_best, n_best)
        history: deque[Indices] = deque(maxlen=min(self.obs_layers, min_layer + 1))
        evidence = self.evidence()
        base: float | None = None
        selected = waits = False
        last = max(prompt.full_layers or range(prompt.n_layer))

        def observe(scores: LayerScores) -> Decision:
            nonlocal base, selected, waits
            per_head = self.head_scores(scores)
            rows = self.rows(per_head, scores, prompt.n_kept)
            if selected:
                return Decision(rows)
            per_token = per_head.sum(axis=0)
            total = evidence(per_token)
            # of layers that all attend to the whole prompt, those further below than obs_layers are compared with none
            if prompt.full_layers or scores.layer > min_layer - self.obs_layers:
                history.append(ranking.ranks(per_token))
            # where few layers attend to the whole prompt, earlier ones serve as the reference too; the first of them has none
            if scores.layer < min_layer and (len(history) < 2 or not prompt.full_layers):
                return Decision(rows)
            alone = base is None and bool(prompt.full_layers) and self.tau > 0
            variance = ranking.rank_variance(list(history), n_leading)
            base = self._base(base, variance, per_token.size)
            ratio = variance / base if base > 0 and len(history) > 1 else 1.0
            if scores.layer < min_layer or (ratio >= self.tau and not alone and not waits):
                return Decision(rows, None, variance, ratio)
            n_kept = prompt.n_kept if prompt.late is None else prompt.late.choose(scores.layer, last)
            if n_kept is None:
                waits = True
                return Decision(rows, None, variance, ratio)
            selected = True
            crowded = prompt.late is not None and prompt.late.crowded
            n_asking = 0 if prompt.late is None else prompt.late.n_asking
            tokens = self.choose(total, scores, n_kept, n_question=self.n_question if crowded else 0, n_asking=n_asking)
            more = self.n_rows(n_kept, n_kept) < n_kept
            spreads = prompt.late is not None and prompt.late.spreads
            return Decision(rows, tokens, variance, ratio, keep_asking=more, spreads=spreads, second_pass=self.two_pass)

        return observe


@dataclass(frozen=True)
class TwoPassASL(ASL):
    """ASL whose kept tokens run again from layer 0, as a prompt of their own (section 3.4, with GemFilter)."""

    name: ClassVar[str] = "asl-two-pass"
    decides_late: ClassVar[bool] = False  # the first pass keeps no rows to choose from
    two_pass: ClassVar[bool] = True

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        # the second pass keeps all of its tokens, whatever cache_k says of the first one
        return max(super().max_rows(n_tokens, n_kept), n_kept)
