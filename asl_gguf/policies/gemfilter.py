"""GemFilter: https://arxiv.org/abs/2409.17422"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import ranking
from .contract import Decision, LayerScores, Observer, Prompt
from .ranking import fixed_tokens, keep_best
from .rerun import RerunPolicy


@dataclass(frozen=True)
class GemFilter(RerunPolicy):
    """The tokens that the last query of one layer likes best run again. Only the last token is always kept."""

    name: ClassVar[str] = "gemfilter"

    window: int = 1
    select_depth: float = 13 / 32
    """share of the layers below the one that selects (r)"""

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        return layer == self.layer_of(n_layer)

    def start(self, prompt: Prompt) -> Observer:
        prompt.require_layer(self.select_layer, "select_layer")

        def observe(scores: LayerScores) -> Decision:
            if scores.queries is None or scores.keys is None:
                return Decision()
            products = ranking.last_query_products(scores.queries, scores.keys)
            pooled = ranking.average_pool(products[None], self.kernel_size)[0]
            fixed = fixed_tokens(scores, 0, 1)
            return Decision(None, keep_best(np.asarray(pooled), fixed, prompt.n_kept), second_pass=True)

        return observe
