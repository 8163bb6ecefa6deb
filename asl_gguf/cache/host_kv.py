"""K/V of whole prompts in host memory, so that another question selects again without running the prompt again.

K/V of a token depend on the tokens before it alone, as long as no token was dropped: those of a prompt's start serve
every prompt that starts alike, in all layers up to the one where the prompt was cut down. `HostKV` keeps them, and the
hidden states that the deeper layers began with; `engine.reusing` runs prompts over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import OptionError
from ..models import gguf_header
from ..native.session import Session
from ..policies.contract import Floats
from .packing import Packing


class HostKV:
    """K/V of all layers of the last prompt.

    Args:
        packing: makes them smaller; None: they stay as the cache stores them.
        row_bytes: what one token takes in each layer; (): not known.
    """

    def __init__(self, packing: Packing | None = None, row_bytes: Sequence[int] = ()) -> None:
        self._packing = packing
        self.row_bytes = tuple(row_bytes)
        self.clear()

    @classmethod
    def of(cls, full_kv: bool | str, session: Session, path: str, arguments: Mapping[str, Any]) -> HostKV | None:
        """What `asl_full_kv` asks for; None: nothing.

        Args:
            session: of the model.
            path: its GGUF file.
            arguments: of llama_cpp.Llama.

        Raises:
            OptionError: as `Packing`, or layers of the model hold more than K/V rows of their own.
            ModelError: as `Packing`.
        """
        if not full_kv:
            return None
        if not session.loads_rows:
            raise OptionError(
                "asl_full_kv: expected False for a model whose layers hold recurrent states or attend to K/V of earlier "
                f"layers, got {full_kv!r}; rows of all tokens do not restore those"
            )
        widths, bytes_cell = gguf_header.cache_widths(path, arguments), session.info().kv_bytes_cell
        if isinstance(full_kv, str):
            packing = Packing(full_kv, *session.kv_types, widths, bytes_cell)
            return cls(packing, packing.row_bytes)
        row_bytes = [sum(map(gguf_header.row_bytes, session.kv_types, pair)) for pair in widths]
        return cls(None, row_bytes if sum(row_bytes) == bytes_cell else ())

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
        """float32 [n_tokens, n_hidden]: what the last of them put out; None if it is the model's last"""

    def n_common(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of a prompt it has."""
        n_most = min(len(self.tokens), len(tokens))
        differing = np.flatnonzero(np.array(self.tokens[:n_most]) != np.array(tokens[:n_most]))
        return int(differing[0]) if differing.size else n_most

    def put(self, tokens: Sequence[int], n_past: int, layers: Sequence[np.ndarray], hidden: Floats | None) -> None:
        """Another prompt, whose first n_past tokens are those it has.

        Args:
            layers: uint8 [n_tokens - n_past, row bytes] of each layer that it has, packed; [n_tokens, row bytes] of others.
            hidden: float32 [n_tokens, n_hidden] after the last of these layers; None if it is the model's last.
        """
        old = list(self.layers)
        self.clear()
        # layer by layer: at no time all layers of both prompts
        joined = [np.concatenate([old.pop(0)[:n_past], new]) if len(new) < len(tokens) else new for new in layers]
        self.tokens, self.layers, self.hidden = tuple(tokens), tuple(joined), hidden
