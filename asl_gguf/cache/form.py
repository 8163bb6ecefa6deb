"""The form of a model's states: what is not of this form was damaged, or written by hand, and is refused whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..native.bindings import llama_cpp
from ..policies.contract import Floats
from .host_kv import HostKV
from .snapshot import Snapshot


@dataclass(frozen=True)
class Form:
    """Sizes of a model's states. Each check raises ValueError with what was expected and what came."""

    n_vocab: int
    n_layer: int
    n_hidden: int
    """elements of a token between two layers"""
    row_bytes: tuple[int, ...] = ()
    """of one token's K/V in each layer, as they lie on the host; (): not known, or they are not kept"""
    state_bytes: tuple[int, ...] = ()
    """of the recurrent state of each layer; (): no layer holds one"""

    @classmethod
    def of(cls, model: Any, host: HostKV | None, n_hidden: int) -> Form:
        """The form of states of a `llama_model *`."""
        return cls(
            n_vocab=llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)),
            n_layer=llama_cpp.llama_model_n_layer(model),
            n_hidden=n_hidden,
            row_bytes=() if host is None else host.row_bytes,
            state_bytes=() if host is None else host.state_bytes,
        )

    def check(self, held: Snapshot) -> None:
        """A snapshot, whoever made it."""
        self.check_tokens("tokens", held.tokens)
        if held.sampled is not None:
            self.check_tokens("the sampled token", (held.sampled,))
        if not _is_int(held.n_pruned) or not 0 <= held.n_pruned <= len(held.tokens):
            raise ValueError(f"expected 0 to {len(held.tokens)} pruned tokens, got {held.n_pruned!r:.80}")
        if len(held.first_cells) not in (0, self.n_layer) or not all(_is_int(c) and c >= 0 for c in held.first_cells):
            raise ValueError(
                f"expected the first cell of {self.n_layer} layers or of none, got {held.first_cells!r:.80}"
            )
        if any(held.first_cells) and (min(held.first_cells) > 0 or not held.n_pruned):
            raise ValueError(
                f"expected a layer that holds all cells, and a prompt that was pruned, got {held.first_cells!r:.80}"
            )
        logits = held.logits
        if logits is not None and (
            not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != (self.n_vocab,)
        ):
            got = f"{getattr(logits, 'dtype', type(logits).__name__)} {list(np.shape(logits))}"
            raise ValueError(f"expected logits as float32 [{self.n_vocab}], got {got}")
        if logits is not None and not (logits < np.inf).all():  # some models forbid tokens by minus infinity
            raise ValueError("expected logits that are numbers, got NaN or infinity among them")

    def check_tokens(self, name: str, tokens: Sequence[int]) -> None:
        """Raises ValueError unless there is a token and each one is in the vocabulary."""
        if not tokens:
            raise ValueError(f"expected {name}, got none")
        for token in tokens:
            if not _is_int(token) or not 0 <= token < self.n_vocab:
                raise ValueError(f"expected {name} from 0 to {self.n_vocab - 1}, got {token!r:.80}")

    def check_rows(
        self,
        tokens: Sequence[int],
        layers: Sequence[np.ndarray],
        hidden: Floats | None,
        states: Mapping[int, np.ndarray],
    ) -> None:
        """What a `HostKV` holds. All four are empty where it holds nothing."""
        if not layers and not tokens and hidden is None and not states:
            return
        self.check_tokens("tokens of K/V", tokens)
        if not 1 <= len(layers) <= self.n_layer:
            raise ValueError(f"expected K/V of 1 to {self.n_layer} layers, got {len(layers)}")
        for layer, rows in enumerate(layers):
            n_bytes = self.row_bytes[layer] if self.row_bytes else rows.shape[-1] if rows.ndim else 0
            if rows.dtype != np.uint8 or rows.shape != (len(tokens), n_bytes):
                raise ValueError(
                    f"expected K/V of layer {layer} as uint8 [{len(tokens)}, {n_bytes}], got {rows.dtype} {list(rows.shape)}"
                )
        if (hidden is None) != (len(layers) == self.n_layer):
            raise ValueError(
                f"expected hidden states after {len(layers)} layers where deeper ones follow, and only there"
            )
        if hidden is not None and (hidden.dtype != np.float32 or hidden.shape != (len(tokens), self.n_hidden)):
            raise ValueError(
                f"expected hidden states as float32 [{len(tokens)}, {self.n_hidden}], got {hidden.dtype} {list(hidden.shape)}"
            )
        self._check_states(len(tokens), sum(self.state_bytes[: len(layers)]), states)

    def _check_states(self, n_tokens: int, n_bytes: int, states: Mapping[int, np.ndarray]) -> None:
        """Recurrent states after numbers of tokens: those of all layers that have K/V."""
        for end, state in states.items():
            if not 1 <= end <= n_tokens or state.dtype != np.uint8 or state.shape != (n_bytes,):
                raise ValueError(
                    f"expected recurrent states after 1 to {n_tokens} tokens as uint8 [{n_bytes}], got {state.dtype} "
                    f"{list(state.shape)} after {end}"
                )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
