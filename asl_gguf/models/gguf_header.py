"""Facts from a GGUF file's header, read by ggml's own parser, before the model is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import ModelError
from ..native.bindings import llama_cpp
from ..native.logged import errors_logged

_UINT32, _INT32, _ARRAY = 4, 5, 9
"""of `gguf_type`"""


class _InitParams(ctypes.Structure):
    """`gguf_init_params` of gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


_SIGNATURES = {
    "gguf_init_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _InitParams]),
    "gguf_free": (None, [ctypes.c_void_p]),
    "gguf_find_key": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p]),
    "gguf_get_kv_type": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_arr_type": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_arr_n": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_arr_data": (ctypes.POINTER(ctypes.c_int32), [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_val_str": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_val_u32": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_int64]),
}


def n_ctx_train(path: str, overrides: Mapping[str, object] | None = None) -> int:
    """Training context of a model in tokens.

    Args:
        overrides: of metadata, as in `kv_overrides` of llama_cpp.Llama.

    Raises:
        ModelError: the file is no readable GGUF, or does not say.
    """
    with _opened(path, overrides) as header:
        length = header.numbers("context_length")
    if not length:
        raise ModelError(f"{path} does not name its training context; pass n_ctx")
    return length[0]


def n_layer(path: str) -> int | None:
    """Layers of a model; None where the header does not say.

    Raises:
        ModelError: the file is no readable GGUF.
    """
    with _opened(path, None) as header:
        return next(iter(header.numbers("block_count")), None)


def head_widths(path: str, overrides: Mapping[str, object] | None = None) -> tuple[int, ...]:
    """Elements of a head's K and of its V; () if the header does not say.

    Raises:
        ModelError: the file is no readable GGUF.
    """
    with _opened(path, overrides) as header:
        n_head, n_embd = header.numbers("attention.head_count"), header.numbers("embedding_length")
        if not n_head or not n_head[0] or not n_embd:
            return ()
        per_head = [n_embd[0] // n_head[0]]
        n_k, n_v = (header.numbers(f"attention.{name}_length") or per_head for name in ("key", "value"))
        return n_k[0], n_v[0]


def kv_widths(path: str, overrides: Mapping[str, object] | None = None) -> list[tuple[int, int]]:
    """Elements of K and of V that a token has in each layer; empty if the header does not say.

    As `llama_model_base::load_hparams` reads them; architectures that change them afterwards differ.

    Raises:
        ModelError: the file is no readable GGUF.
    """
    with _opened(path, overrides) as header:
        n_layers = (header.numbers("block_count") or [0])[0]
        n_head = header.numbers("attention.head_count")
        n_head_kv = header.numbers("attention.head_count_kv") or n_head
        n_embd = header.numbers("embedding_length")
        if not n_head or not n_head[0] or not n_embd or len(n_head_kv) not in (1, n_layers):
            return []
        by_layer = n_head_kv * n_layers if len(n_head_kv) == 1 else n_head_kv
        per_head = [n_embd[0] // n_head[0]]
        n_k, n_v = (header.numbers(f"attention.{name}_length") or per_head for name in ("key", "value"))
        return [(n * n_k[0], n * n_v[0]) for n in by_layer]


def cache_widths(path: str, arguments: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Elements of a cell's K and V in each layer of a cache; empty if the header does not say.

    Args:
        arguments: of llama_cpp.Llama.

    Raises:
        ModelError: the file is no readable GGUF.
    """
    widths = kv_widths(path, arguments.get("kv_overrides"))
    if arguments.get("flash_attn") or not widths:
        return widths
    # V is stored transposed then, alike in all layers
    widest = max(n_v for _, n_v in widths)
    return [(n_k, widest) for n_k, _ in widths]


def row_bytes(kind: int, n_elements: int) -> int:
    """What these many elements of a ggml type take."""
    function = llama_cpp.llama_cpp._lib.ggml_row_size
    function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
    return int(function(kind, n_elements))


class _Header:
    """Numbers of an open header, under the names that follow the architecture's."""

    def __init__(self, lib: ctypes.CDLL, handle: int, overrides: Mapping[str, object]) -> None:
        self._lib = lib
        self._handle = handle
        self._overrides = overrides
        key = lib.gguf_find_key(handle, b"general.architecture")
        self._architecture = lib.gguf_get_val_str(handle, key).decode() if key >= 0 else "?"

    def numbers(self, name: str) -> list[int]:
        """A number, or one for each layer; empty if there is none of 32 bits. ggml aborts where a type is not asked for."""
        name = f"{self._architecture}.{name}"
        if (override := self._overrides.get(name)) is not None:
            return [int(str(override))]
        key = self._lib.gguf_find_key(self._handle, name.encode())
        kind = self._lib.gguf_get_kv_type(self._handle, key) if key >= 0 else None
        if kind == _UINT32:
            return [int(self._lib.gguf_get_val_u32(self._handle, key))]
        if kind != _ARRAY or self._lib.gguf_get_arr_type(self._handle, key) not in (_UINT32, _INT32):
            return []
        return list(self._lib.gguf_get_arr_data(self._handle, key)[: self._lib.gguf_get_arr_n(self._handle, key)])


@contextmanager
def _opened(path: str, overrides: Mapping[str, object] | None) -> Iterator[_Header]:
    lib = llama_cpp.llama_cpp._lib  # libllama, through which its libggml-base is found
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    with errors_logged() as logged:
        handle = lib.gguf_init_from_file(path.encode(), _InitParams(True, None))
    if not handle:
        raise ModelError(f"expected a readable GGUF file, got {path}{logged.because}; download the file again")
    try:
        yield _Header(lib, handle, overrides or {})
    finally:
        lib.gguf_free(handle)
