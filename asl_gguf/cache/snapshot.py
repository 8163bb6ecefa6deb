"""Saved states of a `Llama`: K/V cells, what was dropped from them, and the logits that come next."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StateError
from ..native.bindings import lib, llama_cpp
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

    def serves(self, prompt: Sequence[int]) -> bool:
        """Whether this prompt goes on from all that is held, as K/V that were pruned demand."""
        return tuple(prompt[: len(self.text_tokens)]) == self.text_tokens


def first_cells(ctx: Any) -> tuple[int, ...]:
    """The cell from which on each layer attends."""
    first = (ctypes.c_int32 * llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)))()
    return tuple(first) if lib.context_get_first_cells(ctx, first) else ()


def n_evaluated(ctx: Any) -> int:
    """Where the next token goes: the positions that a context's cells reach."""
    return int(llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(ctx), 0)) + 1


def resident_bytes(ctx: Any) -> tuple[int, ...]:
    """Physical memory that each layer's K/V take now, in bytes; () without a plain KV cache.

    Cells take pages once they are written (Linux, host memory); elsewhere it is what is allocated.
    """
    n_bytes = (ctypes.c_int64 * llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)))()
    return tuple(n_bytes) if lib.context_get_kv_resident(ctx, n_bytes) else ()


def last_logits(ctx: Any, n_vocab: int) -> Floats | None:
    """float32 [n_vocab] of the last decode, a copy."""
    values = llama_cpp.llama_get_logits_ith(ctx, -1)
    return np.ctypeslib.as_array(values, shape=(n_vocab,)).copy() if values else None


def take(ctx: Any) -> bytes:
    """The cells of a context (`llama_state_get_data`)."""
    size = llama_cpp.llama_state_get_size(ctx)
    buffer = (ctypes.c_uint8 * size)()
    return bytes(memoryview(buffer)[: llama_cpp.llama_state_get_data(ctx, buffer, size)])


def put(ctx: Any, held: Snapshot, llama_state: bytes) -> None:
    """Gives a context the cells, and the logits, of a state.

    Raises:
        StateError: llama.cpp refuses them; the context is empty then.
    """
    buffer = (ctypes.c_uint8 * len(llama_state)).from_buffer_copy(llama_state)
    n_layer = llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx))
    fits = len(held.first_cells) in (0, n_layer)
    if fits and llama_cpp.llama_state_set_data(ctx, buffer, len(llama_state)) == len(llama_state):
        first = (ctypes.c_int32 * n_layer)(*held.first_cells)
        if not any(held.first_cells) or lib.context_set_first_cells(ctx, first):
            if held.logits is not None:
                logits = np.ascontiguousarray(held.logits, dtype=np.float32)
                lib.context_set_logits(ctx, logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
            return
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
    raise StateError(
        f"expected a state of this model that fits {llama_cpp.llama_n_ctx(ctx)} KV cells, llama.cpp refuses the one of "
        f"{len(held.tokens)} tokens; pass a larger asl_decode_ctx, or prefill the prompt again"
    )
