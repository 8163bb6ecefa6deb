"""SpecPrefill's choice of tokens: https://arxiv.org/abs/2502.02789"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import ranking
from .contract import Decision, Floats, LayerScores, Observer, Policy, Prompt
from .parameters import require, require_int, require_share, scaled_layer
from .ranking import fixed_tokens, keep_best


@dataclass(frozen=True)
class SpecPrefill(Policy):
    """Runs the prompt up to one layer, and the chunks that its last queries like best again from layer 0.

    In the paper a smaller model prefills the prompt and drafts 8 tokens, whose queries choose; the target model then sees
    the chosen chunks at their own positions. Here the model's first layers stand for the drafter, the prompt's newest
    tokens for the drafted ones, and positions of the second pass are consecutive (as with GemFilter).
    """

    name: ClassVar[str] = "specprefill"
    two_pass: ClassVar[bool] = True

    window: int = 8
    select_layer: int | None = None
    """the layer up to which attention is looked at; None: select_depth of the model's layers"""
    select_depth: float = 0.6
    """share of the layers below it"""
    kernel_size: int = 13
    """width of the average pooling over neighbouring tokens, odd"""
    chunk_size: int = 32
    """tokens that are kept or dropped together, but for one chunk that the budget cuts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.kernel_size, "kernel_size", 1)
        require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        require_int(self.chunk_size, "chunk_size", 1)
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
        return layer <= self._layer(n_layer)

    def keeps_rows(self, layer: int, n_layer: int) -> bool:
        return False

    def start(self, prompt: Prompt) -> Observer:
        prompt.require_layer(self.select_layer, "select_layer")
        last = self._layer(prompt.n_layer)
        largest: Floats | None = None

        def observe(scores: LayerScores) -> Decision:
            nonlocal largest
            if scores.queries is None or scores.keys is None:
                return Decision()
            of_layer = largest_of_heads(scores.queries, scores.keys, self.kernel_size)
            largest = of_layer if largest is None else np.maximum(largest, of_layer)
            if scores.layer < min(last, max(prompt.full_layers or (last,))):
                return Decision()
            chunks = chunk_means(largest.mean(axis=0), self.chunk_size)
            return Decision(
                None, keep_best(chunks, fixed_tokens(scores, 0, scores.window), prompt.n_kept), second_pass=True
            )

        return observe


def largest_of_heads(queries: Floats, keys: Floats, kernel_size: int) -> Floats:
    """Attention of each query, pooled along the tokens, of the head that has most of it: float32 [w, n].

    Args:
        queries: float32 [w, H, d] and keys: float32 [n, H_kv, d], after RoPE.
    """
    n_window, n_head, width = queries.shape
    n_tokens, n_head_kv, _ = keys.shape
    masked = np.triu(np.ones((n_window, n_window), dtype=bool), 1)  # no query sees keys after its own
    largest = np.zeros((n_window, n_tokens), dtype=np.float32)
    for head in range(n_head):
        logits = queries[:, head] @ keys[:, head * n_head_kv // n_head].T / math.sqrt(width)
        logits[:, n_tokens - n_window :][masked] = -np.inf
        attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        np.maximum(largest, ranking.average_pool(attention, kernel_size), out=largest)
    return largest


def chunk_means(values: Floats, size: int) -> Floats:
    """Each value becomes the mean of its chunk; the last chunk may be shorter. float32 [n]"""
    begins = np.arange(0, len(values), size)
    lengths = np.diff(np.append(begins, len(values)))
    return np.repeat(np.add.reduceat(values, begins) / lengths, lengths).astype(np.float32)
