"""What the end of a prompt looks for in it, from the attention of its last tokens in one layer.

Two figures tell questions apart. How much of the attention falls on the document: little where an answer follows from all of
it, much where the prompt goes on with what stands there. And how concentrated it is there: a needle draws nearly all of one
head's attention, several answers or a summary do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .contract import LayerScores

N_QUESTION = 48
"""last tokens of a prompt that are not taken for its document"""
N_BEST = 32
"""tokens on which a head that has found something attends"""


@dataclass(frozen=True)
class Reading:
    """Shares of attention in one layer."""

    document: float
    """of the window's attention, what falls on the document: without the first tokens (sinks) and the last ones (the question)"""
    peak: float
    """of what falls there, what the best N_BEST tokens of the most concentrated KV head get"""


def read(scores: LayerScores, n_sink: int) -> Reading | None:
    """Reads one layer; None where there is no document between the first and the last tokens.

    Args:
        n_sink: first tokens that are no part of the document.
    """
    end = scores.n_current - max(N_QUESTION, scores.window)
    if end - n_sink <= N_BEST:
        return None
    attention = scores.attention.astype(np.float64)
    document = attention[:, n_sink:end]
    of_head = document.sum(axis=-1)
    if not of_head.all():
        return None
    best = np.partition(document, -N_BEST, axis=-1)[:, -N_BEST:].sum(axis=-1)
    return Reading(float(of_head.sum() / attention.sum()), float((best / of_head).max()))
