"""K/V of whole prompts in host memory, so that another question selects again without running the prompt again.

K/V of a token depend on the tokens before it alone, as long as no token was dropped: those of a prompt's start serve
every prompt that starts alike, in all layers up to the one where the prompt was cut down. `FullKV` keeps them, and the
hidden states that the deeper layers began with. A `KeepingSession` stands in for a `Session`: it loads them layer by
layer, runs the other tokens, and goes on from the hidden states with whatever tokens this question selects.

A question that selects at an earlier layer than the one before it keeps K/V of its tokens there, but no token is
dropped before the layer whose hidden states there are; one that selects later runs all tokens from that layer on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import _native, gguf_header
from .packing import Packing
from .session import Session
from .types import Floats, Indices, PrefillReport

_MIN_PAST = 32
"""a shorter common start is not worth it: chunks would end elsewhere than without"""


class FullKV:
    """K/V of all layers of the last prompt.

    Args:
        packing: makes them smaller; None: they stay as the cache stores them.
    """

    def __init__(self, packing: Packing | None = None) -> None:
        self._packing = packing
        self.clear()

    @classmethod
    def of(cls, full_kv: bool | str, session: Session, path: str, arguments: Mapping[str, Any]) -> FullKV | None:
        """What `asl_full_kv` asks for; None: nothing.

        Args:
            session: of the model.
            path: its GGUF file.
            arguments: of llama_cpp.Llama.

        Raises:
            OptionError, ModelError: as `Packing`.
        """
        if not isinstance(full_kv, str):
            return cls() if full_kv else None
        widths = gguf_header.cache_widths(path, arguments)
        return cls(Packing(full_kv, *session.kv_types, widths, session.info().kv_bytes_cell))

    @property
    def n_bytes(self) -> int:
        """Host memory it takes."""
        return sum(layer.nbytes for layer in self.layers) + (0 if self.hidden is None else self.hidden.nbytes)

    @property
    def depth(self) -> int:
        """Layers whose K/V there are."""
        return len(self.layers)

    def packed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Rows as the cache stores them -> as they lie here."""
        return rows if self._packing is None else self._packing.pack(layer, rows)

    def rows(self, layer: int, n_rows: int) -> np.ndarray:
        """The first rows of a layer, uint8 [n_rows, row bytes], as the cache stores them."""
        rows = self.layers[layer][:n_rows]
        return rows if self._packing is None else self._packing.unpack(layer, rows)

    def clear(self) -> None:
        """Gives the memory back; the next prompt runs from its first token."""
        self.tokens: tuple[int, ...] = ()
        self.layers: tuple[np.ndarray, ...] = ()
        """uint8 [n_tokens, row bytes] of each layer that saw all tokens, packed"""
        self.hidden: Floats | None = None
        """float32 [n_tokens, n_embd]: what the last of them put out; None if it is the model's last"""

    def n_common(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of a prompt it has."""
        n_most = min(len(self.tokens), len(tokens))
        differing = np.flatnonzero(np.array(self.tokens[:n_most]) != np.array(tokens[:n_most]))
        return int(differing[0]) if differing.size else n_most

    def put(self, tokens: Sequence[int], n_past: int, layers: Sequence[np.ndarray], hidden: Floats | None) -> None:
        """Another prompt, whose first n_past tokens are those it has.

        Args:
            layers: uint8 [n_tokens - n_past, row bytes] of each layer that it has, packed; [n_tokens, row bytes] of others.
            hidden: float32 [n_tokens, n_embd] after the last of these layers; None if it is the model's last.
        """
        old = list(self.layers)
        self.clear()
        # layer by layer: at no time all layers of both prompts
        joined = [np.concatenate([old.pop(0)[:n_past], new]) if len(new) < len(tokens) else new for new in layers]
        self.tokens, self.layers, self.hidden = tuple(tokens), tuple(joined), hidden


class KeepingSession:
    """A session that computes what `FullKV` does not have. Takes the place of a `Session` in `engine.prefill`."""

    def __init__(self, session: Session, kept: FullKV) -> None:
        self._session = session
        self.sliding = session.sliding
        self._kept = kept
        self._tokens: tuple[int, ...] = ()
        self._whole = True  # the layer that runs next sees all tokens of the prompt
        self._current: Indices | None = None  # what is left of them for the policy, where it dropped some; None: all
        self._n_loading = 0  # tokens whose K/V are loaded, as long as they are
        self._rows: list[np.ndarray] = []  # new K/V of the layers that saw all tokens, packed
        self._hidden: Floats | None = None  # what the last of them put out
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
        self._rows, self._hidden = [], None
        self._window = (window, None)

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """`Session.set_window`"""
        self._session.set_window(window, weights)
        self._window = (window, weights)

    def _set_past(self) -> None:
        """Before the first layer runs, when the window is known: its tokens are computed, for their queries choose."""
        window, weights = self._window
        n_past = min(self._kept.n_common(self._tokens), len(self._tokens) - window)
        self.n_past = self._n_loading = n_past if n_past >= _MIN_PAST else 0
        if self.n_past:
            self._session.set_past(self.n_past)
            self._session.set_window(window, weights)

    def run(self, n_layers: int, with_scores: bool) -> None:
        """`Session.run`, over the tokens that are new."""
        if self._whole and not self._rows:
            self._set_past()
        for i in range(n_layers):
            self._run_layer(with_scores and i == n_layers - 1)

    def _run_layer(self, with_scores: bool) -> None:
        layer = len(self._rows)
        if self._n_loading and layer == self._kept.depth:
            self._leave_past()
        if self._n_loading:
            self._session.load_rows(self._kept.rows(layer, self._n_loading))
        self._session.run(1, with_scores)
        self._n_computed += self._session.info().n_current - self._n_loading
        if self._whole:
            rows = self._session.save_rows(self._n_loading, len(self._tokens))
            self._rows.append(self._kept.packed(layer, rows))

    def _leave_past(self) -> None:
        """The layers whose K/V there are have run: the past's hidden states join, and what was dropped goes."""
        assert self._kept.hidden is not None
        self._session.load_hidden(self._kept.hidden[: self._n_loading])
        self._n_loading = 0
        if self._current is not None:
            self._drop(self._current)

    def _drop(self, left: Indices) -> None:
        """Deeper layers see these tokens only. What they began with, of all tokens, is there for the next prompt."""
        self._hidden = self._session.save_hidden(0, len(self._tokens))
        self._session.keep_tokens(left)
        self._whole, self._current = False, None

    def info(self) -> _native.session_info:
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

    def finish(self) -> None:
        """`Session.finish`, and the new K/V are there for the next prompt."""
        n_layer = self._session.info().n_layer
        while self._whole and len(self._rows) < n_layer:
            if self._n_loading and len(self._rows) == self._kept.depth:
                self._leave_past()
            else:
                self._run_layer(False)
                if not self.sliding[len(self._rows) - 1]:
                    self.keep_rows(None)
        info = self._session.info()
        self._n_computed += (n_layer - info.next_layer) * info.n_current
        self._session.finish()
        if self._rows:
            self._kept.put(self._tokens, self.n_past, self._rows, self._hidden)

    def abort(self) -> None:
        """`Session.abort`; what `FullKV` has stays."""
        self._session.abort()
        self._rows, self._hidden = [], None

    def corrected(self, report: PrefillReport) -> PrefillReport:
        """The engine's report, with what was computed in truth."""
        return replace(
            report, token_layers=self._n_computed, reused_tokens=self.n_past, full_kv_bytes=self._kept.n_bytes
        )
