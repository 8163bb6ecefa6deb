"""GemFilter: https://arxiv.org/abs/2409.17422"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import ranking
from .contract import Decision, LayerScores, Observer, Policy, Prompt
from .parameters import require, require_int, require_share, scaled_layer
from .ranking import fixed_tokens, keep_best


@dataclass(frozen=True)
class GemFilter(Policy):
    """Runs the prompt up to one layer, and the tokens that its last query likes best again from layer 0.

    Only the last token is always kept. The second pass is a prompt of its own; its positions are consecutive and
    end where the prompt's end, which for rotary positions is the same as beginning at 0.
    """

    name: ClassVar[str] = "gemfilter"
    two_pass: ClassVar[bool] = True

    window: int = 1
    select_layer: int | None = None
    """the layer that selects (r); None: select_depth of the model's layers"""
    select_depth: float = 13 / 32
    """share of the layers below the one that selects"""
    kernel_size: int = 5
    """width of the average pooling over neighbouring tokens, odd"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.kernel_size, "kernel_size", 1)
        require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        if self.select_layer is not None:
            require_int(self.select_layer, "select_layer", 0)
        require_share(self.select_depth, "select_depth")

    def _layer(self, n_layer: int) -> int:
        layer = self.select_layer if self.select_layer is not None else scaled_layer(self.select_depth, n_layer)
        return min(layer, n_layer - 1)

    def first_selection(self, n_layer: int) -> int | None:
        return self._layer(n_layer)

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return self.needs_keys(layer, n_layer)

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        return layer == self._layer(n_layer)

    def keeps_rows(self, layer: int, n_layer: int) -> bool:
        return False

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
