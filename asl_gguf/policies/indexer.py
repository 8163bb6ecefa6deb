"""The model's own ranking: DeepSeek sparse attention, https://arxiv.org/abs/2512.02556"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .fastkv import FastKV


@dataclass(frozen=True)
class Indexer(FastKV):
    """Keeps the tokens that the model's indexer ranks best: in each layer for its K/V, in one layer for all deeper ones.

    Each layer of such a model chooses the tokens that a query attends to by the scores of a small indexer, whose softmax was
    trained to match the layer's attention, summed over heads. Here that softmax takes attention's place in FastKV.
    """

    name: ClassVar[str] = "indexer"
    ranks_by: ClassVar[Literal["attention", "indexer"]] = "indexer"
    scores_kept_rows: ClassVar[bool] = False
