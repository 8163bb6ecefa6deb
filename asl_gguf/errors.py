"""The exception tree of the package.

Every message says what was expected, what came, and what to do. `AslError` catches them all; each
class also derives from the built-in that callers of `llama_cpp` already handle.
"""

from __future__ import annotations

_MOST_BITS = 200  # of an integer that messages write out
_MOST_LETTERS = 80


def shown(value: object) -> str:
    """A value as messages show it: no longer than a line. Python itself writes no integer of more than 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


class AslError(Exception):
    """Base of every error raised by asl_gguf."""


class OptionError(AslError, ValueError):
    """An option or argument has a value outside its domain, or is unknown."""


class OptionTypeError(OptionError, TypeError, AttributeError):
    """An argument is of another type than the parent can use."""


class LibraryError(AslError, ImportError):
    """The native library is missing, of another version, or llama_cpp was imported too early."""


class ModelError(AslError, ValueError):
    """The model file is missing, unreadable or corrupt, or a named model is unknown."""


class AdapterError(ModelError, RuntimeError):
    """A LoRA file is missing, or is no adapter of this model."""


class DownloadError(AslError, RuntimeError):
    """A named model could not be fetched, or what came does not match its sha256."""


class UnsupportedModelError(AslError, NotImplementedError):
    """The model's architecture cannot be pruned; it can still answer from its full KV cache."""


class PromptError(AslError, ValueError):
    """The prompt is empty, holds an invalid token, or is longer than n_ctx allows."""

    @classmethod
    def too_long(cls, n_tokens: int, n_ctx: int) -> PromptError:
        """The error of a prompt that n_ctx has no room for."""
        return cls(
            f"expected fewer than n_ctx = {n_ctx} tokens, got a prompt of {n_tokens}; raise n_ctx "
            # llama_cpp.server and others know this error by llama_cpp's words
            f"(Requested tokens ({n_tokens}) exceed context window of {n_ctx})"
        )


class ContextFullError(AslError, RuntimeError):
    """The decode context has no KV cells left for further tokens."""


class PrefillCancelled(AslError, RuntimeError):
    """A prefill was cancelled by its progress callback; the object answers the next prompt."""


class StateError(AslError, RuntimeError):
    """A saved state or prompt is damaged, or belongs to another model, version or setting."""


class AttentionMassError(AslError, RuntimeError):
    """The kept K/V hold less of the window's attention than was asked for. mass: the share they hold."""

    def __init__(self, mass: float, guard: float) -> None:
        super().__init__(f"expected kept K/V to hold {guard} of the window's attention, they hold {mass:.3f}")
        self.mass = mass


class NativeError(AslError, RuntimeError):
    """A native call failed for a reason outside the caller's control (memory, backend)."""


class OutOfMemoryError(NativeError, MemoryError):
    """There is no memory for a context or a buffer now."""


class UnaskedWarning(UserWarning):
    """A question goes on from K/V that were chosen before it was known; the text says what to do."""


class PruningDisabledWarning(UserWarning):
    """This model or this use answers from the full KV cache; the text says why."""
