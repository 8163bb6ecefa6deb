"""Prompts that few tokens suffice for, told from others by one head of one layer. Of a model, as `asl-gguf calibrate` finds it.

Which head that is, and on which side such prompts lie, differs from model to model, so both are found. The attention that is
read need not be the model's own to the last bit: caps and sinks are left out here, as they were when the head was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .contract import Floats, LayerScores
from .parameters import is_number, require, require_int, require_share
from .ranking import window_scores
from .reading import N_QUERIES, N_QUESTION, query_weights

N_BEST = 8
"""tokens of the document that a head looks at most. Of 32, and of the document's share of all attention, kinds of prompts that
a choice had not seen were lost (docs/LOG.md)"""


@dataclass(frozen=True)
class Cut:
    """Where prompts that few tokens suffice for part from the others."""

    layer: int
    """that is read"""
    head: int
    """query head"""
    above: bool
    """few tokens suffice from the threshold on; else up to it"""
    threshold: float
    """share of the head's attention on the document that its best N_BEST tokens have"""
    scale: float
    """factor on the products of queries and keys"""
    few: float = 0.0
    """how far few tokens are from the least to the upper limit"""

    def __post_init__(self) -> None:
        require_int(self.layer, "layer", 0)
        require_int(self.head, "head", 0)
        require(isinstance(self.above, bool), "above", "true or false", self.above)
        require(is_number(self.threshold) and 0 <= self.threshold <= 1, "threshold", "a share", self.threshold)
        require(is_number(self.scale) and self.scale > 0, "scale", "a number above 0", self.scale)
        require_share(self.few, "few")

    @property
    def deeper(self) -> int:
        """No deeper layer is known to select better."""
        return self.layer

    def read(self, scores: LayerScores, n_sink: int) -> float | None:
        """The head's peak. None where the layer has no such head, or the prompt no document."""
        if scores.queries is None or scores.keys is None or self.head >= scores.queries.shape[1]:
            return None
        of_kv = self.head * scores.keys.shape[1] // scores.queries.shape[1]
        own = scores.queries[:, self.head : self.head + 1], scores.keys[:, of_kv : of_kv + 1]
        found = peaks(head_attention(*own, self.scale), n_sink)
        return None if found is None else float(found[0])

    def need(self, peak: float) -> float:
        """`few` where few tokens suffice; 1: the upper limit is kept."""
        return self.few if (peak >= self.threshold if self.above else peak <= self.threshold) else 1.0

    def words(self, peak: float) -> str:
        """What was read, for reports."""
        return (
            f"in layer {self.layer}, head {self.head} has {peak:.1%} of its attention to the document on {N_BEST} tokens "
            f"(few suffice {'from' if self.above else 'up to'} {self.threshold:.1%}{' on' if self.above else ''})"
        )


def head_attention(queries: Floats, keys: Floats, scale: float) -> Floats:
    """Attention of the newest queries, of which the newest weigh most: float32 [n_head, n].

    Args:
        queries: float32 [w, n_head, n_embd_head_k], after RoPE.
        keys: float32 [n, n_head_kv, n_embd_head_k], after RoPE.
    """
    queries = queries[-N_QUERIES:]
    of_heads = np.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    return window_scores(queries, of_heads, scale, query_weights(len(queries)))


def peaks(attention: Floats, n_sink: int) -> npt.NDArray[np.float64] | None:
    """Of each head, what its best N_BEST tokens have of its attention to the document. None: no document stands between the
    first and the last tokens, or a head does not look at it.

    Args:
        attention: float32 [n_head, n].
    """
    end = attention.shape[-1] - N_QUESTION
    if end - n_sink <= N_BEST:
        return None
    document = attention[:, n_sink:end].astype(np.float64)
    of_head = document.sum(axis=-1)
    if not (np.isfinite(of_head).all() and of_head.all()):
        return None
    return np.partition(document, -N_BEST, axis=-1)[:, -N_BEST:].sum(axis=-1) / of_head
