"""ASL inside llama.cpp: long prompts on quantised GGUF models, pruned while they are prefilled.

>>> from asl_gguf import Llama
>>> llm = Llama("model.gguf", n_ctx=32768, asl_budget=0.1)
>>> llm(long_prompt, max_tokens=64)["choices"][0]["text"]
>>> llm.last_prefill.kept_tokens
"""

from __future__ import annotations

from ._version import __version__
from .errors import (
    AdapterError,
    AslError,
    ContextFullError,
    DownloadError,
    LibraryError,
    ModelError,
    NativeError,
    OptionError,
    OptionTypeError,
    OutOfMemoryError,
    PrefillCancelled,
    PromptError,
    PruningDisabledWarning,
    StateError,
    UnaskedWarning,
    UnsupportedModelError,
)
from .native import selecting

TYPE_CHECKING = False  # typing's, without importing it: the command starts sooner
if TYPE_CHECKING:
    from .drop_in.llama import Llama
    from .drop_in.pruned import pruned
    from .report import PrefillReport

# `import llama_cpp` finds our library from now on. It is loaded on first use, so that models and docs
# work without it.
selecting.select(__path__)

_LAZY = {"Llama": "drop_in.llama", "PrefillReport": "report", "pruned": "drop_in.pruned"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "AdapterError",
    "AslError",
    "ContextFullError",
    "DownloadError",
    "LibraryError",
    "Llama",
    "ModelError",
    "NativeError",
    "OptionError",
    "OptionTypeError",
    "OutOfMemoryError",
    "PrefillCancelled",
    "PrefillReport",
    "PromptError",
    "PruningDisabledWarning",
    "StateError",
    "UnaskedWarning",
    "UnsupportedModelError",
    "__version__",
    "pruned",
]
