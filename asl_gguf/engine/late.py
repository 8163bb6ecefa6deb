"""A budget that is decided where tokens are selected: rows that earlier layers hold in excess go then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..policies import Policy
from ..policies.contract import Decision, Indices, LayerScores
from .layers import Layers


class HeldRows:
    """Scores and rows of the layers up to the selection, which keep as many rows as the budget may allow.

    Scores take n_head_kv floats a token and layer, a small part of the K/V.
    """

    def __init__(self, layers: Layers, policy: Policy) -> None:
        self._source = layers
        self._policy = policy
        self._layers: list[tuple[LayerScores, Indices | None]] = []

    def add(self, scores: LayerScores, decision: Decision) -> None:
        """A layer has kept its rows."""
        # the scores' buffers may be the session's or a record's
        self._layers.append((replace(scores, queries=None, keys=None), decision.rows))

    def shrink(self, n_kept: int, tokens: Indices | None) -> list[tuple[int, Indices | None]]:
        """So many rows stay, those of these tokens before others.

        Returns:
            of each layer, how many rows it holds, and which tokens they are; None: all.
        """
        left: list[tuple[int, Indices | None]] = []
        for scores, held in self._layers:
            rows = self._policy.fewer_rows(scores, held, n_kept, tokens)
            if rows is None:
                rows = held
            else:
                self._source.shrink_rows(scores.layer, rows if held is None else _places(held, rows))
            left.append((scores.n_current if rows is None else rows.shape[-1], rows))
        return left

    def attention(self, place: int) -> LayerScores:
        """Scores of one of the layers that were added."""
        return self._layers[place][0]


def _places(held: Indices, rows: Indices) -> Indices:
    """Where these rows are among the held ones."""
    if held.ndim == 1:
        return np.searchsorted(held, rows).astype(np.int32)
    return np.stack([np.searchsorted(of_head, own) for of_head, own in zip(held, rows)]).astype(np.int32)
