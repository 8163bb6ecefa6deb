"""Several sequences in one llama_context, for tests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from harness import Context, llama_cpp


class Sequences:
    """Decodes tokens of any sequence of a context, at the positions after its last one."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def next_pos(self, seq: int) -> int:
        return llama_cpp.llama_memory_seq_pos_max(self.context.memory, seq) + 1

    def decode(self, seq: int, tokens: Sequence[int]) -> np.ndarray:
        """The last token's logits."""
        size = self.context.options.n_batch
        for begin in range(0, len(tokens), size):
            self._decode(seq, tokens[begin : begin + size])
        return self.context.logits()

    def _decode(self, seq: int, tokens: Sequence[int]) -> None:
        first = self.next_pos(seq)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, first + i, 1, seq
            batch.logits[i] = i == len(tokens) - 1
        status = llama_cpp.llama_decode(self.context.handle, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, status

    def greedy(self, seq: int, first: int, n_tokens: int) -> tuple[list[int], list[np.ndarray]]:
        """Decodes `first`, then the likeliest token n_tokens - 1 times; tokens and logits."""
        tokens, logits = [first], []
        for _ in range(n_tokens):
            logits.append(self.decode(seq, tokens[-1:]))
            tokens.append(int(logits[-1].argmax()))
        return tokens, logits

    def remove(self, seq: int, begin: int = -1) -> None:
        assert llama_cpp.llama_memory_seq_rm(self.context.memory, seq, begin, -1)

    def state(self, seq: int) -> bytes:
        """What llama.cpp saves of a sequence: positions and K/V rows, in the order of the cells."""
        size = llama_cpp.llama_state_seq_get_size(self.context.handle, seq)
        buffer = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(self.context.handle, buffer, size, seq) == size
        return bytes(buffer)

    def positions(self, seq: int) -> list[int]:
        """Of its cells in the first cache, in their order."""
        state, at = self.state(seq), 8
        n_streams, at = _number(state, at)
        for _ in range(n_streams):
            n_cells, at = _number(state, at)
            if n_cells:
                return np.frombuffer(state, "<i4", 3 * n_cells, at)[::3].tolist()
        return []

    def plain_state(self, seq: int) -> bytes:
        """The same without the sequence's number and empty streams: equal bytes are equal positions and rows."""
        return plain_state(self.state(seq))


def plain_state(state: bytes) -> bytes:
    """Positions and rows of a state of one sequence, whatever its number, in a context of however many streams."""
    parts, at = [], 8  # after magic and sequence
    while at < len(state):  # one block a cache
        n_streams, at = _number(state, at)
        for _ in range(n_streams):
            n_cells, at = _number(state, at)
            if n_cells:
                parts.append(np.frombuffer(state, "<i4", 3 * n_cells, at)[::3].tobytes())
                end = _skip_rows(state, at + 12 * n_cells, n_cells)
                parts.append(state[at + 12 * n_cells : end])
                at = end
    return b"".join(parts)


def _number(state: bytes, at: int, size: int = 4) -> tuple[int, int]:
    return int.from_bytes(state[at : at + size], "little"), at + size


def _skip_rows(state: bytes, at: int, n_cells: int) -> int:
    """The end of llama_kv_cache::state_write_data."""
    transposed, at = _number(state, at)
    n_layer, at = _number(state, at)
    for kind in "kv":
        for _ in range(n_layer):
            at += 4  # type
            if kind == "v" and transposed:
                n_bytes, at = _number(state, at)
                n_channels, at = _number(state, at)
                at += n_bytes * n_channels * n_cells
            else:
                n_bytes, at = _number(state, at, 8)
                at += n_bytes * n_cells
    return at
