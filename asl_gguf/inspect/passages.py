"""Where in a prompt the kept text lies: its passages, and the share that is kept of each part."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .inspection import Inspection

_GAP = 3
"""dropped tokens that do not end a passage"""
_EXCERPT = 60
"""characters"""


@dataclass(frozen=True)
class Passage:
    """Tokens begin to end, most of them kept."""

    begin: int
    end: int
    excerpt: str


def kept_tokens(inspection: Inspection) -> np.ndarray:
    """bool [n_tokens]: what the deepest layers saw, or where no token was dropped, what half of layers and heads keep."""
    report, shares = inspection.report, inspection.kept_shares
    if not report.pruned:
        return np.zeros(shares.size, dtype=bool)
    if not report.selected:
        return shares >= 0.5
    kept = np.zeros(shares.size, dtype=bool)
    kept[list(report.selected)] = True
    return kept


def passages(inspection: Inspection) -> list[Passage]:
    """The kept passages in order."""
    index = np.flatnonzero(kept_tokens(inspection))
    if not index.size:
        return []
    runs = np.split(index, np.flatnonzero(np.diff(index) > _GAP + 1) + 1)
    return [_passage(inspection, int(run[0]), int(run[-1]) + 1) for run in runs]


def _passage(inspection: Inspection, begin: int, end: int) -> Passage:
    text = " ".join("".join(inspection.pieces[begin:end]).split())
    return Passage(begin, end, text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…")


def density(inspection: Inspection, n_parts: int) -> list[tuple[int, int, float]]:
    """The prompt in parts of equal length: (begin, end, share of kept tokens) of each."""
    kept = kept_tokens(inspection)
    edges = np.linspace(0, kept.size, min(n_parts, kept.size) + 1).astype(int).tolist()
    return [(begin, end, float(kept[begin:end].mean())) for begin, end in itertools.pairwise(edges)]
