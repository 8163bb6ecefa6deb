"""Token counts before a model is loaded for good."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import ModelError
from .bindings import llama_cpp
from .context import assertions_caught


def load_model(path: str, *, vocab_only: bool = False, n_gpu_layers: int = 0) -> Any:
    """A `llama_model *`, without a context.

    Raises:
        ModelError: llama.cpp cannot load the file.
    """
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = n_gpu_layers
    llama_cpp.llama_backend_init()
    with assertions_caught() as logged:
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise ModelError(
            f"expected a GGUF model that llama.cpp can load, got {path}{logged.because}; download the file again, or convert "
            "the model with tools of this version"
        )
    return model


def tokenize(model: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text; with `special`, special tokens are parsed, and BOS comes where the model wants one."""
    data = text.encode("utf-8")
    buffer = (llama_cpp.llama_token * (len(data) + 8))()  # mostly, a token is at least a byte; a few are added
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_tokens = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), special, special)
    if n_tokens < 0:  # a space is three bytes to SentencePiece, and a vocabulary may have tokens for bytes alone
        buffer = (llama_cpp.llama_token * -n_tokens)()
        n_tokens = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), special, special)
    return list(buffer[:n_tokens])


def piece(model: Any, token: int) -> bytes:
    """The bytes that a token stands for, special ones included."""
    vocab = llama_cpp.llama_model_get_vocab(model)
    buffer = ctypes.create_string_buffer(256)
    n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
    if n_bytes < 0:
        buffer = ctypes.create_string_buffer(-n_bytes)
        n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
    return buffer.raw[: max(n_bytes, 0)]


def detokenize(model: Any, tokens: Sequence[int]) -> str:
    """The text of these tokens, special ones left out."""
    if not tokens:
        return ""
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    buffer = ctypes.create_string_buffer(64 * len(tokens) + 64)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_bytes = llama_cpp.llama_detokenize(vocab, ids, len(tokens), buffer, len(buffer), False, False)
    if n_bytes < 0:
        buffer = ctypes.create_string_buffer(-n_bytes)
        n_bytes = llama_cpp.llama_detokenize(vocab, ids, len(tokens), buffer, len(buffer), False, False)
    return buffer.raw[:n_bytes].decode("utf-8", "replace")


@contextmanager
def vocabulary(path: str) -> Iterator[Any]:
    """A model loaded without its weights: quick, and enough to tokenize."""
    model = load_model(path, vocab_only=True)
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)
