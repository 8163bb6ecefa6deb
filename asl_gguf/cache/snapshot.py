"""A conversation at rest: its tokens and K/V cells, what was dropped from them, and the logits that come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..native.bindings import llama_cpp
from ..policies.contract import Floats
from .fingerprint import Fingerprint


class State(llama_cpp.LlamaState):
    """A `llama_cpp.LlamaState` of a pruned `Llama`; pickles, and goes into llama_cpp's caches.

    It holds no matrix of scores and only the tokens that were evaluated, unlike the parent's, so that
    llama_cpp.Llama refuses it instead of reusing K/V that were chosen for one question.
    """

    def __init__(self, held: Snapshot, llama_state: bytes, seed: int, origin: Fingerprint) -> None:
        super().__init__(
            input_ids=np.array(held.tokens, dtype=np.intc),
            scores=np.empty((0, 0), dtype=np.single),
            n_tokens=len(held.tokens),
            llama_state=llama_state,
            llama_state_size=len(llama_state),
            seed=seed,
        )
        self.held = held
        self.origin = dict(origin)


@dataclass(frozen=True)
class Snapshot:
    """What a decode context holds, beside its cells."""

    tokens: tuple[int, ...]
    """evaluated, kept or not"""
    sampled: int | None
    """the answer's last token, given out but not evaluated; None: there is none, or it is no text"""
    n_pruned: int
    """tokens of the prompt whose K/V were dropped in part: what is left serves what goes on from all tokens and from
    nothing less; 0: nothing was dropped"""
    first_cells: tuple[int, ...]
    """of each layer, where layers keep different numbers of rows"""
    logits: Floats | None
    """float32 [n_vocab] after the last token; None: it has to be evaluated again"""

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The evaluated tokens and the sampled one: the prompt and the answer."""
        return self.tokens if self.sampled is None else (*self.tokens, self.sampled)


NOTHING = Snapshot(tokens=(), sampled=None, n_pruned=0, first_cells=(), logits=None)
"""of an object that has evaluated no token"""
