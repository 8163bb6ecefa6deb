"""Token counts before a model is loaded for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._native import llama_cpp
from .errors import ModelError


def load_model(path: str, *, vocab_only: bool = False, n_gpu_layers: int = 0) -> Any:
    """A `llama_model *`, without a context.

    Raises:
        ModelError: llama.cpp cannot load the file.
    """
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = n_gpu_layers
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise ModelError(f"expected a GGUF model that llama.cpp can load, got {path}")
    return model


def tokenize(model: Any, text: str) -> list[int]:
    """Token ids of a text, special tokens parsed, BOS where the model wants one."""
    data = text.encode("utf-8")
    buffer = (llama_cpp.llama_token * (len(data) + 8))()  # a token is at least a byte; a few are added
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_tokens = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), True, True)
    return list(buffer[:n_tokens])


@contextmanager
def vocabulary(path: str) -> Iterator[Any]:
    """A model loaded without its weights: quick, and enough to tokenize."""
    model = load_model(path, vocab_only=True)
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)
