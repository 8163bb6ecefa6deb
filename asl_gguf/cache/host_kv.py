"""K/V of whole prompts in host memory, so that another question selects again without running the prompt again.

K/V of a token depend on the tokens before it alone, as long as no token was dropped: those of a prompt's start serve
every prompt that starts alike, in all layers up to the one where the prompt was cut down. `HostKV` keeps them, and the
hidden states that the deeper layers began with; `engine.reusing` runs prompts over them. Recurrent states do not go back:
of layers that hold one, it is kept after a few numbers of tokens, and prompts go on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ..native.session import Session
from ..policies.contract import Floats
from .packing import Packing


class HostKV:
    """K/V of all layers of the last prompt.

    Args:
        packing: makes them smaller; None: they stay as the cache stores them.
        row_bytes: what one token takes in each layer, 0 in one without K/V of its own; (): not known.
        state_bytes: what the recurrent state of each layer takes; (): no layer holds one.
    """

    def __init__(
        self, packing: Packing | None = None, row_bytes: Sequence[int] = (), state_bytes: Sequence[int] = ()
    ) -> None:
        self._packing = packing
        self.row_bytes, self.state_bytes = tuple(row_bytes), tuple(state_bytes)
        self.clear()

    @classmethod
    def of(cls, full_kv: bool | str, session: Session) -> HostKV | None:
        """What `asl_full_kv` asks for; None: nothing.

        Args:
            session: of the model. Nothing is evaluated in its context.

        Raises:
            OptionError: as `Packing`.
        """
        if not full_kv:
            return None
        sizes, state_bytes = _sizes(session)
        if isinstance(full_kv, str):
            type_k, type_v = session.kv_types
            packing = Packing(full_kv, type_k, type_k if session.has_indexer else type_v, sizes)
            return cls(packing, packing.row_bytes, state_bytes)
        return cls(None, [k + v for k, v in sizes], state_bytes)

    @property
    def n_bytes(self) -> int:
        """Host memory it takes."""
        arrays = [*self.layers, *self.states.values(), *([] if self.hidden is None else [self.hidden])]
        return sum(array.nbytes for array in arrays)

    @property
    def depth(self) -> int:
        """Layers whose K/V there are."""
        return len(self.layers)

    def packed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Rows as the cache stores them -> as they lie here."""
        return rows if self._packing is None or not rows.shape[1] else self._packing.pack(layer, rows)

    def rows(self, layer: int, n_rows: int) -> np.ndarray:
        """The first rows of a layer, uint8 [n_rows, row bytes], as the cache stores them."""
        rows = self.layers[layer][:n_rows]
        return rows if self._packing is None or not rows.shape[1] else self._packing.unpack(layer, rows)

    def state(self, layer: int, n_tokens: int) -> np.ndarray:
        """The recurrent state of a layer after so many tokens, one of `states`."""
        begin = sum(self.state_bytes[:layer])
        return self.states[n_tokens][begin : begin + self.state_bytes[layer]]

    def clear(self) -> None:
        """Gives the memory back; the next prompt runs from its first token."""
        self.tokens: tuple[int, ...] = ()
        self.layers: tuple[np.ndarray, ...] = ()
        """uint8 [n_tokens, row bytes] of each layer that saw all tokens, packed"""
        self.hidden: Floats | None = None
        """float32 [n_tokens, n_hidden]: what the last of them put out; None if it is the model's last"""
        self.states: dict[int, np.ndarray] = {}
        """after so many tokens, uint8: the recurrent states of these layers, one after another"""

    def n_common(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of a prompt it has."""
        n_most = min(len(self.tokens), len(tokens))
        differing = np.flatnonzero(np.array(self.tokens[:n_most]) != np.array(tokens[:n_most]))
        return int(differing[0]) if differing.size else n_most

    @property
    def has_states(self) -> bool:
        """Whether layers of the model hold recurrent states."""
        return any(self.state_bytes)

    def reusable(self, tokens: Sequence[int], n_most: int) -> int:
        """How many tokens at the start of a prompt, n_most at most, need not run again."""
        n_tokens = min(self.n_common(tokens), n_most)
        return max((n for n in self.states if n <= n_tokens), default=0) if self.has_states else n_tokens

    def put(
        self,
        tokens: Sequence[int],
        n_past: int,
        layers: Sequence[np.ndarray],
        hidden: Floats | None,
        states: Mapping[int, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Another prompt, whose first n_past tokens are those it has.

        Args:
            layers: uint8 [n_tokens - n_past, row bytes] of each layer that it has, packed; [n_tokens, row bytes] of others.
            hidden: float32 [n_tokens - n_past, n_hidden] after the last of these layers where that is the last of those it has,
                else [n_tokens, n_hidden]; None if it is the model's last.
            states: after so many tokens, uint8, the recurrent states of these layers one after another.
        """
        old, old_hidden = list(self.layers), self.hidden
        self.clear()
        if old_hidden is not None and hidden is not None and len(hidden) < len(tokens):
            hidden = np.concatenate([old_hidden[:n_past], hidden])
        old_hidden = None
        # layer by layer: at no time all layers of both prompts
        joined = [np.concatenate([old.pop(0)[:n_past], new]) if len(new) < len(tokens) else new for new in layers]
        self.tokens, self.layers, self.hidden, self.states = tuple(tokens), tuple(joined), hidden, dict(states)


def _sizes(session: Session) -> tuple[list[tuple[int, int]], list[int]]:
    """Bytes of a token's K and V, and of the recurrent state, in each layer."""
    session.begin([0], 1)
    try:
        layers = range(session.info().n_layer)
        keys = [session.key_bytes(layer) for layer in layers]
        rows = [(n_key, session.row_bytes(layer) - n_key) for layer, n_key in zip(layers, keys)]
        return rows, [session.state_size(layer) for layer in layers]
    finally:
        session.abort()
