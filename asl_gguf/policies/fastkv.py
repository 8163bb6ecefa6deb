"""FastKV: https://arxiv.org/abs/2502.01068"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .contract import Decision, LayerScores, Observer, Prompt
from .parameters import require_int, require_share, scaled_layer
from .scoring import SelectingPolicy


@dataclass(frozen=True)
class FastKV(SelectingPolicy):
    """Keeps the best tokens of one fixed layer, and K/V rows of every layer as SnapKV does.

    The paper propagates a fifth of the tokens (tsp_rate) and keeps a tenth of the K/V (retain_rate); here the
    budget is both, as in the comparison by ASL's authors, unless cache_k says otherwise.
    """

    name: ClassVar[str] = "fastkv"

    window: int = 8
    tsp_layer: int | None = None
    """the layer that selects; None: tsp_depth of the model's layers"""
    tsp_depth: float = 15 / 32
    """share of the layers below the one that selects"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tsp_layer is not None:
            require_int(self.tsp_layer, "tsp_layer", 0)
        require_share(self.tsp_depth, "tsp_depth")

    def _layer(self, n_layer: int) -> int:
        return self.tsp_layer if self.tsp_layer is not None else scaled_layer(self.tsp_depth, n_layer)

    def first_selection(self, n_layer: int) -> int | None:
        return min(self._layer(n_layer), n_layer - 1)

    def start(self, prompt: Prompt) -> Observer:
        tsp_layer = self._layer(prompt.n_layer)
        prompt.require_layer(self.tsp_layer, "tsp_layer")
        evidence = self.evidence()
        selected = False

        def observe(scores: LayerScores) -> Decision:
            nonlocal selected
            per_head = self.head_scores(scores)
            rows = self.rows(per_head, scores, prompt.n_kept)
            if selected:
                return Decision(rows)
            total = evidence(per_head.sum(axis=0))
            if scores.layer < tsp_layer:
                return Decision(rows)
            selected = True
            more = self.n_rows(prompt.n_kept, prompt.n_kept) < prompt.n_kept
            return Decision(rows, self.choose(total, scores, prompt.n_kept), keep_asking=more)

        return observe
