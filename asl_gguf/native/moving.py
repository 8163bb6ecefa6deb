"""A sequence goes from one context to another: from the one it was prefilled in to one that many share, or back."""

from __future__ import annotations

import ctypes

from ..errors import ContextFullError, OptionError
from . import bindings
from .bindings import lib


def free_cells(context: int, seq_id: int) -> int:
    """KV cells that tokens of a sequence may take; sequences of a unified cache share them.

    Args:
        context: a `llama_context *`.
    """
    n_cells = lib.context_get_free_cells(context, seq_id)
    if n_cells < 0:
        raise OptionError(f"expected a context with a KV cache and one of its sequences, got sequence {seq_id}")
    return n_cells


def move(source: int, target: int, seq_id: int, with_logits: bool = True, *, source_id: int = 0) -> None:
    """Copies sequence source_id of `source` into the empty sequence seq_id of `target`, byte for byte.

    Args:
        source: a `llama_context *`.
        target: a `llama_context *` of the same model.
        with_logits: the last logits of source become those of target.

    Raises:
        ContextFullError: target has too few free cells. Nothing has changed.
        OptionError: the contexts or the sequence do not fit, with the reason. Nothing has changed.
    """
    error = ctypes.create_string_buffer(512)
    status = lib.context_move(source, source_id, target, seq_id, with_logits, error, len(error))
    if status != bindings.OK:
        raise bindings.to_error(status, error.value)


def require_cells(context: int, seq_id: int, n_cells: int) -> None:
    """Raises ContextFullError unless a sequence may take so many more cells."""
    if n_cells > (n_free := free_cells(context, seq_id)):
        raise ContextFullError(
            f"expected at most {n_free} more cells to be needed, which are free, got {n_cells}; end another sequence, or make "
            "the context with a larger n_ctx"
        )
