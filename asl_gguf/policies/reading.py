"""What the end of a prompt looks for in it, from the attention of its last tokens in one layer.

Two figures tell questions apart. How much of the attention falls on the document: little where an answer follows from all of
it, much where the prompt goes on with what stands there. And how concentrated it is there: a needle draws nearly all of one
head's attention, several answers or a summary do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .contract import Floats, LayerScores
from .ranking import window_scores

N_QUERIES = 20
"""newest tokens whose attention is read. With 12, four values look like one; 25 reach into the document of short questions"""
_HALF_LIFE = 8
"""a query that is this many tokens older counts half as much"""
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


def read(scores: LayerScores, n_sink: int, n_queries: int = N_QUERIES) -> Reading | None:
    """Reads one layer, from its queries and keys: a policy's window may reach into the document, whose tokens ask for nothing.

    Args:
        n_sink: first tokens that are no part of the document.
        n_queries: newest tokens whose attention is read.

    Returns:
        None where the layer has no keys, or no document stands between the first and the last tokens.
    """
    if scores.queries is None or scores.keys is None:
        return None
    queries = scores.queries[-n_queries:]
    scale = 1 / math.sqrt(queries.shape[-1])  # of the models with thresholds; Gemma's is another
    return reading_of(window_scores(queries, scores.keys, scale, query_weights(len(queries))), n_sink)


def query_weights(n_queries: int) -> Floats:
    """Of the newest queries, float32 [n_queries]."""
    return np.exp2(-np.arange(n_queries - 1, -1, -1) / _HALF_LIFE).astype(np.float32)


def reading_of(attention: Floats, n_sink: int) -> Reading | None:
    """The same from float32 [n_head_kv, n]: attention of the newest queries."""
    end = attention.shape[-1] - N_QUESTION
    if end - n_sink <= N_BEST:
        return None
    attention = attention.astype(np.float64)
    document = attention[:, n_sink:end]
    of_head = document.sum(axis=-1)
    if not of_head.all():
        return None
    best = np.partition(document, -N_BEST, axis=-1)[:, -N_BEST:].sum(axis=-1)
    return Reading(float(of_head.sum() / attention.sum()), float((best / of_head).max()))
