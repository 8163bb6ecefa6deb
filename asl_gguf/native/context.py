"""What a llama_context holds: its cells as bytes, its logits, its memory."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import NativeError, OptionError
from ..policies.contract import Floats, Policy
from .arrays import float_p
from .bindings import lib, llama_cpp
from .logged import Logged, errors_logged


def check_ranking(context: int, policy: Policy) -> None:
    """Raises OptionError if the policy ranks by an indexer and the model has none.

    Args:
        context: a `llama_context *`.
    """
    if policy.ranks_by == "indexer" and not lib.context_has_indexer(context):
        raise OptionError(
            f"asl_policy: expected a model with an indexer (sparse attention) for the policy {policy.name}, this one has none; "
            "use asl-span"
        )


def first_cells(ctx: Any) -> tuple[int, ...]:
    """The cell from which on each layer attends."""
    first = (ctypes.c_int32 * llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)))()
    return tuple(first) if lib.context_get_first_cells(ctx, first) else ()


def adapters(ctx: Any) -> str:
    """What tells apart the LoRA adapters and control vectors that are set on a context, and their scales; "none" without."""
    digest = ctypes.c_uint64()
    if not lib.context_get_adapters(ctx, ctypes.byref(digest)):
        raise NativeError("expected LoRA adapters and control vectors that can be read, got others")
    return f"{digest.value:016x}" if digest.value else "none"


def set_adapters(ctx: Any, adapters: Sequence[tuple[int, float]]) -> None:
    """Sets LoRA adapters (`llama_adapter_lora *` and a scale each) on a context, in place of those that were."""
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))()
    for i, (adapter, _) in enumerate(adapters):
        pointers[i] = ctypes.cast(adapter, llama_cpp.llama_adapter_lora_p_ctypes)
    scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
    if llama_cpp.llama_set_adapters_lora(ctx, pointers, len(adapters), scales) != 0:
        raise NativeError(f"llama.cpp could not set {len(adapters)} LoRA adapters on a context")


@contextlib.contextmanager
def assertions_caught() -> Iterator[Logged]:
    """For the time of calls that load a model or make a context: an assertion of llama.cpp that fails there makes them fail.

    Else it ends the process. Gives what llama.cpp logs as errors meanwhile.
    """
    lib.throw_on_abort(True)
    try:
        with errors_logged() as logged:
            yield logged
    finally:
        lib.throw_on_abort(False)


def probe(ctx: Any) -> str | None:
    """Decodes a token in a new context, and forgets it. Returns which assertion of llama.cpp fails, None if none does."""
    error = ctypes.create_string_buffer(512)
    return None if lib.context_probe(ctx, error, len(error)) else error.value.decode("utf-8", "replace")


def n_evaluated(ctx: Any, seq_id: int = 0) -> int:
    """Where the next token of a sequence goes: one after the last position that its cells hold."""
    return int(llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(ctx), seq_id)) + 1


def sees_back(ctx: Any, n_tokens: int, seq_id: int = 0) -> bool:
    """Whether a token after the first n_tokens of an unpruned sequence finds all that it attends to.

    Sliding layers hold their window; after a state was loaded, later tokens take the cells before it.
    """
    n_swa = int(llama_cpp.llama_model_n_swa(llama_cpp.llama_get_model(ctx)))
    first = int(llama_cpp.llama_memory_seq_pos_min(llama_cpp.llama_get_memory(ctx), seq_id))
    return n_swa == 0 or first <= max(0, n_tokens - n_swa)


def remove_from(ctx: Any, begin: int, seq_id: int = 0) -> bool:
    """Frees the cells of a sequence from this position on. Returns whether it could: recurrent states do not go back."""
    return bool(llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(ctx), seq_id, begin, -1))


def resident_bytes(ctx: Any) -> tuple[int, ...]:
    """Physical memory that each layer's K/V take now, in bytes; () without a plain KV cache.

    Cells take pages once they are written (Linux, host memory); elsewhere it is what is allocated.
    """
    n_bytes = (ctypes.c_int64 * llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)))()
    return tuple(n_bytes) if lib.context_get_kv_resident(ctx, n_bytes) else ()


def last_logits(ctx: Any) -> Floats | None:
    """float32 [n_vocab] of the last decode, a copy; None if there are none."""
    values = llama_cpp.llama_get_logits_ith(ctx, -1)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(ctx)))
    return np.ctypeslib.as_array(values, shape=(n_vocab,)).copy() if values else None


_SHIFTS = b"asl-shifts"


def take_cells(ctx: Any) -> bytes:
    """The cells of a context (`llama_state_get_data`); after them how far rows stand before their cells (ALiBi), if any do."""
    size = llama_cpp.llama_state_get_size(ctx)
    buffer = (ctypes.c_uint8 * size)()
    cells = bytes(memoryview(buffer)[: llama_cpp.llama_state_get_data(ctx, buffer, size)])
    shifts = np.zeros(lib.context_get_shifts(ctx, None, 0), dtype=np.float32)
    if not shifts.size:
        return cells
    lib.context_get_shifts(ctx, float_p(shifts), shifts.size)
    return cells + shifts.tobytes() + struct.pack("<q", shifts.nbytes) + _SHIFTS


def _apart(cells: bytes) -> tuple[bytes, Floats | None]:
    """What `take_cells` put together."""
    if not cells.endswith(_SHIFTS):
        return cells, None
    end = len(cells) - len(_SHIFTS) - 8
    (n_bytes,) = struct.unpack_from("<q", cells, end)
    if not 0 < n_bytes <= end or n_bytes % 4:
        return cells, None
    return cells[: end - n_bytes], np.frombuffer(cells[end - n_bytes : end], dtype=np.float32)


def put_cells(ctx: Any, cells: bytes, first: Sequence[int], logits: Floats | None) -> bool:
    """Gives a context cells from `take_cells`, and the logits after them.

    Args:
        first: `first_cells`; empty or all 0 where every layer has all rows.
        logits: float32 [n_vocab]; None: there are none.

    Returns:
        whether llama.cpp took them; if not, the context is empty
    """
    cells, shifts = _apart(cells)
    buffer = np.frombuffer(cells, dtype=np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))  # no copy: it is read
    n_layer = llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx))
    fits = len(first) in (0, n_layer)
    if fits and llama_cpp.llama_state_set_data(ctx, buffer, len(cells)) == len(cells):
        placed = not any(first) or lib.context_set_first_cells(ctx, (ctypes.c_int32 * n_layer)(*first))
        if placed and (shifts is None or lib.context_set_shifts(ctx, float_p(shifts.copy()), shifts.size)):
            if logits is not None:
                values = np.ascontiguousarray(logits, dtype=np.float32)
                lib.context_set_logits(ctx, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
            return True
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
    return False


def model_shape(model: int) -> tuple[int, int, int]:
    """Layers, KV heads and width of a model, by which thresholds are found.

    Args:
        model: a `llama_model *`.
    """
    return (
        llama_cpp.llama_model_n_layer(model),
        llama_cpp.llama_model_n_head_kv(model),
        llama_cpp.llama_model_n_embd(model),
    )
