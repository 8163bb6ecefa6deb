"""Layers of a turn: new tokens run over the K/V that their conversation keeps, and only they are ranked and dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..native.bindings import session_info
from ..native.session import Session
from ..policies.contract import Floats, Indices
from ..report import PrefillReport
from .plan import Plan


class TurnLayers:
    """A session whose decode context keeps what it holds. Token indices are those of the turn.

    In each layer the new tokens attend to the past's cells and to each other. The past's rows stay where they are; the
    turn's are added behind them. A prefill that ends early leaves the decode context as it was.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.sliding, self.drops_tokens, self.state_bytes = session.sliding, session.drops_tokens, session.state_bytes
        self._n_past = 0

    def info(self) -> session_info:
        """`Session.info`, with the past left out of what is current and of the cells that are free."""
        info = self._session.info()
        info.n_cells -= self._n_past or info.n_cells_used
        info.n_current = max(0, info.n_current - self._n_past)
        return info

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """`Session.extend`; a turn starts where the past ends."""
        assert first_pos == 0, "a turn has no second pass"
        self._session.extend(tokens, window)
        self._n_past = self._session.info().n_past

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """`Session.set_window`"""
        self._session.set_window(window, weights)

    def rank_by(self, ranks_by: str) -> None:
        """`Session.rank_by`"""
        self._session.rank_by(ranks_by)

    def expect(self, n_kept: int, layer: int) -> None:
        """`Session.expect`"""
        self._session.expect(n_kept, layer)

    def running(self, n_layers: int, with_scores: bool) -> Iterator[None]:
        """`Session.running`"""
        return self._session.running(n_layers, with_scores)

    def scores(self) -> Floats:
        """`Session.scores` of the turn's tokens; the softmax was taken over the past as well."""
        return np.ascontiguousarray(self._session.scores()[:, self._n_past :])

    def queries(self) -> Floats:
        """`Session.queries`"""
        return self._session.queries()

    def keys(self) -> Floats:
        """`Session.keys` of the turn's tokens."""
        return self._session.keys()[self._n_past :]

    def keep_rows(self, index: Indices | None) -> int:
        """`Session.keep_rows`: the past's, and these of the turn. Returns how many of the turn."""
        return self._session.keep_rows(None if index is None else self._after_past(index)) - self._n_past

    def shrink_rows(self, layer: int, index: Indices) -> None:
        """`Session.shrink_rows`"""
        self._session.shrink_rows(layer, self._after_past(index))

    def keep_tokens(self, index: Indices) -> None:
        """`Session.keep_tokens`"""
        self._session.keep_tokens(self._after_past(index))

    def _after_past(self, index: Indices) -> Indices:
        past = np.broadcast_to(np.arange(self._n_past, dtype=np.int32), (*index.shape[:-1], self._n_past))
        return np.concatenate([past, index + self._n_past], axis=-1).astype(np.int32)

    def finishing(self) -> Iterator[None]:
        """`Session.finishing`"""
        return self._session.finishing()

    def abort(self) -> None:
        """`Session.abort`; the past stays."""
        self._session.abort()


def of_whole_prompt(report: PrefillReport, plan: Plan, n_cells_used: int, bytes_cell: int) -> PrefillReport:
    """A turn's report as one of the whole prompt: the past's cells are there as well."""
    n_past_cells = n_cells_used - report.kept_tokens
    return replace(
        report,
        prompt_tokens=len(plan.tokens),
        kept_tokens=n_cells_used,
        reused_tokens=plan.n_past,
        selected=tuple(i + plan.n_past for i in report.selected),
        rows_by_layer=tuple(n + n_past_cells for n in report.rows_by_layer),
        kv_bytes_prompt=n_cells_used * bytes_cell,
        kv_bytes_prompt_full=len(plan.tokens) * bytes_cell,
    )
