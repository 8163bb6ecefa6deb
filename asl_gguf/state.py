"""What `llama_cpp.LlamaState` does not know about a pruned state."""

from __future__ import annotations

import ctypes
from typing import Any

from ._native import lib, llama_cpp

_PRUNED = "asl_pruned"
_FIRST_CELLS = "asl_first_cells"


def mark(state: llama_cpp.LlamaState, ctx: Any, *, pruned: bool) -> llama_cpp.LlamaState:
    """Adds to a state of this context whether it is pruned, and which cells each of its layers has."""
    first = (ctypes.c_int32 * llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)))()
    setattr(state, _PRUNED, pruned)
    setattr(state, _FIRST_CELLS, list(first) if lib.context_get_first_cells(ctx, first) else None)
    return state


def restore(state: llama_cpp.LlamaState, ctx: Any) -> bool:
    """Gives a context that has loaded a state its layers' cells. Returns whether the state is pruned.

    Of a state that does not say, the worst is assumed: it serves its own continuation only.
    """
    if (first := getattr(state, _FIRST_CELLS, None)) is not None:
        lib.context_set_first_cells(ctx, (ctypes.c_int32 * len(first))(*first))
    return bool(getattr(state, _PRUNED, True))
