"""Layers of a prompt whose start was prefilled before: its K/V come from host memory, the other tokens run.

A question that selects at an earlier layer than the one before it keeps K/V of its tokens there, but no token is
dropped before the layer whose hidden states there are; one that selects later runs all tokens from that layer on.

Of layers with recurrent states, the states are kept at the prompt's end and at ends of chunks before it: where a later
prompt may leave this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..cache.host_kv import HostKV
from ..native.bindings import session_info
from ..native.session import Session
from ..policies.contract import Floats, Indices
from ..report import PrefillReport

_MIN_PAST = 32
"""a shorter common start is not worth it: chunks would end elsewhere than without"""
_MAX_STATES = 4
"""states after so many different numbers of tokens are kept of a layer"""


class ReusingLayers:
    """A session that computes what `HostKV` does not have."""

    def __init__(self, session: Session, kept: HostKV, n_queries: int = 0) -> None:
        """
        Args:
            n_queries: newest tokens that are computed at least, for a late budget reads their queries.
        """
        self._session, self._n_queries = session, n_queries
        self.sliding, self.drops_tokens, self.state_bytes = session.sliding, session.drops_tokens, session.state_bytes
        self._kept = kept
        self._tokens: tuple[int, ...] = ()
        self._whole = True  # the layer that runs next sees all tokens of the prompt
        self._current: Indices | None = None  # what is left of them for the policy, where it dropped some; None: all
        self._n_loading = 0  # tokens whose K/V are loaded, as long as they are
        self._rows: list[np.ndarray] = []  # new K/V of the layers that saw all tokens, packed
        self._hidden: Floats | None = None  # what the last of them put out
        self._states: dict[int, list[np.ndarray]] = {}  # of these layers, after so many tokens
        self._missed = 0  # tokens that the kept prompt begins with, too, and that run for want of a state
        self._window: tuple[int, Floats | None] = (0, None)  # and the weights of its queries
        self._n_computed = 0  # token-layers
        self.n_past = 0
        """tokens of the prompt that were not computed in the first layer"""

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """`Session.begin`. From another position on, tokens run a second time: as they are, and nothing is kept."""
        self._session.begin(tokens, window, first_pos)
        self._whole = first_pos == 0
        if self._whole:
            self._n_computed = self.n_past = 0
        self._tokens, self._current, self._n_loading = tuple(tokens), None, 0
        self._rows, self._hidden, self._states, self._missed = [], None, {}, 0
        self._window = (window, None)

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """`Session.set_window`"""
        self._session.set_window(window, weights)
        self._window = (window, weights)

    def rank_by(self, ranks_by: str) -> None:
        """`Session.rank_by`"""
        self._session.rank_by(ranks_by)

    def expect(self, n_kept: int, layer: int) -> None:
        """`Session.expect`. No token is dropped before the layer whose hidden states there are."""
        self._session.expect(n_kept, max(layer, self._kept.depth - 1) if self._n_loading else layer)

    def _set_past(self) -> None:
        """Before the first layer runs, when the window is known: its tokens are computed, for their queries choose."""
        window, weights = self._window
        n_most = len(self._tokens) - min(max(window, self._n_queries), len(self._tokens))
        n_past = self._kept.reusable(self._tokens, n_most)
        self.n_past = self._n_loading = n_past if n_past >= _MIN_PAST else 0
        if self.n_past:
            self._session.set_past(self.n_past)
            self._session.set_window(window, weights)
        if self._kept.has_states:
            n_common = min(self._kept.n_common(self._tokens), n_most)
            self._missed = n_common if n_common >= _MIN_PAST and not self.n_past else 0
            self._states = {end: [] for end in self._state_ends(n_common, n_most)}
            self._session.set_state_ends([end for end in self._states if end < len(self._tokens)])
        if not self.n_past:
            self._kept.clear()  # another document: else there would be K/V of two by its end

    def _state_ends(self, n_common: int, n_most: int) -> list[int]:
        """Where a later prompt may go on: where this one did, before it left the one before, and at its end.

        New ones are ends of chunks, which run as they would without.
        """
        n_ubatch = self._session.chunks["n_ubatch"]
        new = {self._chunk_end(n) for n in (n_common, n_most - n_ubatch, n_most)}
        ends = sorted(
            {end for end in self._kept.states if end <= self.n_past} | {end for end in new if end >= _MIN_PAST}
        )
        return [*ends[:1], *ends[1:][2 - _MAX_STATES :], len(self._tokens)]

    def _chunk_end(self, n_tokens: int) -> int:
        """The last end of a chunk after at most so many tokens."""
        n_batch, n_ubatch = self._session.chunks["n_batch"], self._session.chunks["n_ubatch"]
        n_new = max(0, n_tokens - self.n_past)
        return self.n_past + n_new // n_batch * n_batch + n_new % n_batch // n_ubatch * n_ubatch

    def running(self, n_layers: int, with_scores: bool) -> Iterator[None]:
        """`Session.running`, over the tokens that are new."""
        if self._whole and not self._rows:
            self._set_past()
        for i in range(n_layers):
            yield from self._running_layer(with_scores and i == n_layers - 1)

    def _running_layer(self, with_scores: bool) -> Iterator[None]:
        layer = len(self._rows)
        if self._n_loading and layer == self._kept.depth:
            self._leave_past()
        if self._n_loading:
            self._load(layer)
        yield from self._session.running(1, with_scores)
        self._n_computed += self._session.info().n_current - self._n_loading
        if self._whole:
            self._save(layer)

    def _load(self, layer: int) -> None:
        rows = self._kept.rows(layer, self._n_loading)
        if rows.shape[1]:
            self._session.load_rows(rows)
        if self._kept.has_states and self._kept.state_bytes[layer]:
            self._session.load_state(self._kept.state(layer, self._n_loading))

    def _save(self, layer: int) -> None:
        n_tokens = len(self._tokens)
        if self._session.row_bytes(layer):
            rows = self._session.save_rows(self._n_loading, n_tokens)
        else:
            rows = np.empty((n_tokens - self._n_loading, 0), dtype=np.uint8)
        self._rows.append(self._kept.packed(layer, rows))
        for end, states in self._states.items():
            if self._kept.state_bytes[layer]:
                kept = end <= self._n_loading
                states.append(self._kept.state(layer, end) if kept else self._session.save_state(end))

    def _leave_past(self) -> None:
        """The layers whose K/V there are have run: the past's hidden states join, and what was dropped goes."""
        assert self._kept.hidden is not None
        n_past, self._n_loading = self._n_loading, 0
        self._session.load_hidden(self._kept.hidden[:n_past])
        if self._current is not None:
            self._drop(self._current, n_past)

    def _drop(self, left: Indices, n_kept: int = 0) -> None:
        """Deeper layers see these tokens only. What they began with, of all tokens, is there for the next prompt: that of the
        first n_kept is kept already."""
        self._hidden = self._session.save_hidden(n_kept, len(self._tokens))
        self._session.keep_tokens(left)
        self._whole, self._current = False, None

    def info(self) -> session_info:
        """`Session.info`"""
        return self._session.info()

    def scores(self) -> Floats:
        """`Session.scores` of the tokens that are left; the softmax was taken over all that the layer saw."""
        return self._of_current(self._session.scores(), axis=1)

    def queries(self) -> Floats:
        """`Session.queries`"""
        return self._session.queries()

    def keys(self) -> Floats:
        """`Session.keys` of the tokens that are left."""
        return self._of_current(self._session.keys(), axis=0)

    def _of_current(self, values: Floats, axis: int) -> Floats:
        return values if self._current is None else np.ascontiguousarray(np.take(values, self._current, axis))

    def keep_rows(self, index: Indices | None) -> int:
        """`Session.keep_rows`"""
        if self._current is not None:
            index = self._current if index is None else self._current[index]
        return self._session.keep_rows(index)

    def shrink_rows(self, layer: int, index: Indices) -> None:
        """`Session.shrink_rows`"""
        self._session.shrink_rows(layer, index)

    def keep_tokens(self, index: Indices) -> None:
        """`Session.keep_tokens`, from the layer on whose hidden states there are; before it, K/V of others are dropped."""
        if not self._whole:
            self._session.keep_tokens(index)
            return
        self._current = index if self._current is None else self._current[index]
        if not self._n_loading:
            self._drop(self._current)
        elif len(self._rows) == self._kept.depth:
            self._leave_past()

    def finishing(self) -> Iterator[None]:
        """`Session.finishing`, and the new K/V are there for the next prompt."""
        n_layer = self._session.info().n_layer
        while self._whole and len(self._rows) < n_layer:
            if self._n_loading and len(self._rows) == self._kept.depth:
                self._leave_past()
            else:
                yield from self._running_layer(False)
                if not self.sliding[len(self._rows) - 1]:
                    self.keep_rows(None)
        info = self._session.info()
        self._n_computed += (n_layer - info.next_layer) * info.n_current
        yield from self._session.finishing()
        if self._rows:
            none = np.empty(0, dtype=np.uint8)
            states = {end: np.concatenate([none, *of_layers]) for end, of_layers in self._states.items()}
            self._kept.put(self._tokens, self.n_past, self._rows, self._hidden, states)

    def abort(self) -> None:
        """`Session.abort`; what `HostKV` has stays."""
        self._session.abort()
        self._rows, self._hidden, self._states = [], None, {}

    def corrected(self, report: PrefillReport) -> PrefillReport:
        """The engine's report, with what was computed in truth."""
        missed = f"the prompt leaves the one before after {self._missed} tokens, where no recurrent state was kept: all of it ran"
        return replace(
            report,
            token_layers=self._n_computed,
            reused_tokens=self.n_past,
            full_kv_bytes=self._kept.n_bytes,
            reason=missed if self._missed else report.reason,
        )
