"""A prefilled sequence goes from the context it was prefilled in to one that many sequences share."""

from __future__ import annotations

import ctypes

from . import _native
from ._native import lib
from .errors import OptionError


def free_cells(context: int, seq_id: int) -> int:
    """KV cells that tokens of a sequence may take; sequences of a unified cache share them.

    Args:
        context: a `llama_context *`.
    """
    n_cells = lib.context_get_free_cells(context, seq_id)
    if n_cells < 0:
        raise OptionError(f"expected a context with a KV cache and one of its sequences, got sequence {seq_id}")
    return n_cells


def move(source: int, target: int, seq_id: int, with_logits: bool = True) -> None:
    """Copies what `source` holds into the empty sequence seq_id of `target`, byte for byte.

    Args:
        source: a `llama_context *` with one sequence, whose prefill has finished.
        target: a `llama_context *` of the same model.
        with_logits: the last logits of source become those of target.

    Raises:
        ContextFullError: target has too few free cells. Nothing has changed.
        OptionError: the contexts or the sequence do not fit, with the reason. Nothing has changed.
    """
    error = ctypes.create_string_buffer(512)
    status = lib.context_move(source, target, seq_id, with_logits, error, len(error))
    if status != _native.OK:
        raise _native.to_error(status, error.value)
