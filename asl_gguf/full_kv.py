"""K/V of whole prompts in host memory, so that another question selects again without running the prompt again.

K/V of a token depend on the tokens before it alone: those of a prompt's start serve every prompt that starts alike.
`FullKV` keeps them; a `KeepingSession` stands in for a `Session`, loads them layer by layer and runs the rest. Tokens
are then never dropped from the layers that run: where a policy drops some, deeper layers keep K/V of the others only,
but of K/V that were computed with all tokens in sight.
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
        self.tokens: tuple[int, ...] = ()
        self.layers: tuple[np.ndarray, ...] = ()
        """uint8 [n_tokens, row bytes] of each layer, packed"""

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
        return sum(layer.nbytes for layer in self.layers)

    def packed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Rows as the cache stores them -> as they lie here."""
        return rows if self._packing is None else self._packing.pack(layer, rows)

    def rows(self, layer: int, n_rows: int) -> np.ndarray:
        """The first rows of a layer, uint8 [n_rows, row bytes], as the cache stores them."""
        rows = self.layers[layer][:n_rows]
        return rows if self._packing is None else self._packing.unpack(layer, rows)

    def clear(self) -> None:
        """Gives the memory back; the next prompt runs from its first token."""
        self.tokens, self.layers = (), ()

    def n_common(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of a prompt it has."""
        n_most = min(len(self.tokens), len(tokens))
        differing = np.flatnonzero(np.array(self.tokens[:n_most]) != np.array(tokens[:n_most]))
        return int(differing[0]) if differing.size else n_most

    def put(self, tokens: Sequence[int], n_past: int, layers: Sequence[np.ndarray]) -> None:
        """Another prompt, whose first n_past tokens are those it has.

        Args:
            layers: uint8 [n_tokens - n_past, row bytes] of each layer, packed.
        """
        old = list(self.layers)
        self.clear()
        # layer by layer: at no time all layers of both prompts
        joined = [np.concatenate([old.pop(0)[:n_past], new]) if n_past else new for new in layers]
        self.tokens, self.layers = tuple(tokens), tuple(joined)


class KeepingSession:
    """A session that computes what `FullKV` does not have. Takes the place of a `Session` in `engine.prefill`."""

    def __init__(self, session: Session, kept: FullKV) -> None:
        self._session = session
        self._kept = kept
        self._tokens: tuple[int, ...] = ()
        self._current: Indices | None = None  # what is left of the tokens, as the policy sees it; None: all
        self._rows: list[np.ndarray] = []  # new K/V of the layers that ran, packed
        self._is_prompt = True  # False: tokens that run a second time, at positions of their own
        self._window: tuple[int, Floats | None] = (0, None)  # and the weights of its queries
        self.n_past = 0
        """tokens of the prompt that were not computed"""

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """`Session.begin`"""
        self._session.begin(tokens, window, first_pos)
        self._tokens, self._current, self._rows = tuple(tokens), None, []
        self._is_prompt = first_pos == 0
        self._window = (window, None)

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """`Session.set_window`"""
        self._session.set_window(window, weights)
        self._window = (window, weights)

    def _set_past(self) -> None:
        """Before the first layer runs, when the window is known: its tokens are computed, for their queries choose."""
        window, weights = self._window
        n_past = min(self._kept.n_common(self._tokens), len(self._tokens) - window)
        self.n_past = n_past if n_past >= _MIN_PAST else 0
        if self.n_past:
            self._session.set_past(self.n_past)
            self._session.set_window(window, weights)

    def run(self, n_layers: int, with_scores: bool) -> None:
        """`Session.run`, over the tokens that are new."""
        if not self._is_prompt:
            self._session.run(n_layers, with_scores)
            return
        if not self._rows:
            self._set_past()
        for i in range(n_layers):
            if self.n_past:
                self._session.load_rows(self._kept.rows(len(self._rows), self.n_past))
            self._session.run(1, with_scores and i == n_layers - 1)
            rows = self._session.save_rows(self.n_past, len(self._tokens))
            self._rows.append(self._kept.packed(len(self._rows), rows))

    def info(self) -> _native.session_info:
        """`Session.info`"""
        return self._session.info()

    def scores(self) -> Floats:
        """`Session.scores` of the tokens that are left; the softmax was taken over all."""
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
        """Deeper layers keep K/V of these tokens only."""
        if self._is_prompt:
            self._current = index if self._current is None else self._current[index]
        else:
            self._session.keep_tokens(index)

    def finish(self) -> None:
        """`Session.finish`, and the new K/V are there for the next prompt."""
        if self._is_prompt:
            while len(self._rows) < self._session.info().n_layer:
                self.run(1, False)
                self.keep_rows(None)
        self._session.finish()
        if self._is_prompt:
            self._kept.put(self._tokens, self.n_past, self._rows)

    def abort(self) -> None:
        """`Session.abort`; what `FullKV` has stays."""
        self._session.abort()
        self._rows = []

    def corrected(self, report: PrefillReport) -> PrefillReport:
        """The engine's report, with what was computed in truth."""
        n_computed = (report.prompt_tokens - self.n_past) * report.n_layer
        if report.passes == 2 and report.selection_layer is not None:
            n_computed = report.token_layers - self.n_past * (report.selection_layer + 1)
        return replace(report, token_layers=n_computed, reused_tokens=self.n_past, full_kv_bytes=self._kept.n_bytes)
