"""Facts from a GGUF file's header, read by ggml's own parser, before the model is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ._native import llama_cpp
from .errors import ModelError


class _InitParams(ctypes.Structure):
    """`gguf_init_params` of gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


_SIGNATURES = {
    "gguf_init_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _InitParams]),
    "gguf_free": (None, [ctypes.c_void_p]),
    "gguf_find_key": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p]),
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
    lib = llama_cpp.llama_cpp._lib  # libllama, through which its libggml-base is found
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    header = lib.gguf_init_from_file(path.encode(), _InitParams(True, None))
    if not header:
        raise ModelError(f"expected a readable GGUF file, got {path}")
    try:
        key = lib.gguf_find_key(header, b"general.architecture")
        architecture = lib.gguf_get_val_str(header, key) if key >= 0 else b"?"
        if (length := (overrides or {}).get(f"{architecture.decode()}.context_length")) is not None:
            return int(str(length))
        key = lib.gguf_find_key(header, architecture + b".context_length")
        if key < 0:
            raise ModelError(f"{path} does not name its training context; pass n_ctx")
        return int(lib.gguf_get_val_u32(header, key))
    finally:
        lib.gguf_free(header)
