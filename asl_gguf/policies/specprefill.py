"""SpecPrefill's choice of tokens: https://arxiv.org/abs/2502.02789"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import ranking
from .contract import Decision, Floats, LayerScores, Observer, Prompt
from .parameters import require_int
from .ranking import fixed_tokens, keep_best
from .rerun import RerunPolicy


@dataclass(frozen=True)
class SpecPrefill(RerunPolicy):
    """The chunks that the last queries like best, in any layer up to one, run again.

    In the paper a smaller model prefills the prompt and drafts 8 tokens, whose queries choose; the target model then sees
    the chosen chunks at their own positions. Here the model's first layers stand for the drafter, the prompt's newest
    tokens for the drafted ones, and positions of the second pass are consecutive.
    """

    name: ClassVar[str] = "specprefill"

    window: int = 8
    select_depth: float = 0.6
    """share of the layers below the last one whose attention is looked at"""
    kernel_size: int = 13
    chunk_size: int = 32
    """tokens that are kept or dropped together, but for one chunk that the budget cuts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.chunk_size, "chunk_size", 1)

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        return layer <= self.layer_of(n_layer)

    def start(self, prompt: Prompt) -> Observer:
        prompt.require_layer(self.select_layer, "select_layer")
        last = self.layer_of(prompt.n_layer)
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
