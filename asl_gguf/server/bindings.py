"""ctypes bindings of native/server/asl-serve.h, and nothing else. A test compares them with the header."""

from __future__ import annotations

import ctypes
import sys
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from .. import __path__ as _package_paths
from ..errors import LibraryError
from ..native import loading
from ..native.bindings import llama_cpp

ABI_VERSION = 4

STOCK = 0
MORE = 1
DONE = 2
TOO_LONG = 3
INVALID = 4
NO_CELLS = 5
FAILED = 6


class Sizes(ctypes.Structure):
    """`asl_serve_sizes`."""

    _fields_ = [
        ("model", c_char_p),
        ("n_ctx", c_int32),
        ("n_slots", c_int32),
        ("unified", c_bool),
        ("n_ctx_slot", c_int32),
        ("n_cells", c_int32),
        ("n_slice", c_int32),
        ("refused", c_bool),
    ]


class Span(ctypes.Structure):
    """`asl_serve_span`."""

    _fields_ = [("role", c_int32), ("begin", c_int32), ("end", c_int32)]


class Adapter(ctypes.Structure):
    """`asl_serve_adapter`."""

    _fields_ = [("adapter", c_void_p), ("scale", c_float)]


class Prompt(ctypes.Structure):
    """`asl_serve_prompt`."""

    _fields_ = [
        ("slot", c_int32),
        ("tokens", POINTER(c_int32)),
        ("n_tokens", c_int32),
        ("n_past", c_int32),
        ("n_pruned", c_int32),
        ("n_dropped", c_int32),
        ("n_answer", c_int32),
        ("n_common", c_int32),
        ("other", c_int32),
        ("spans", POINTER(Span)),
        ("n_spans", c_int32),
        ("options", c_char_p),
        ("unprunable", c_char_p),
        ("adapters", POINTER(Adapter)),
        ("n_adapters", c_int32),
        ("adapters_id", c_uint64),
    ]


class Answer(ctypes.Structure):
    """`asl_serve_answer`."""

    _fields_ = [
        ("n_past", c_int32),
        ("n_pruned", c_int32),
        ("n_dropped", c_int32),
        ("n_done", c_int32),
        ("text", c_char * 16384),
    ]


_params_p = POINTER(llama_cpp.llama_context_params)


Sink = CFUNCTYPE(None, c_void_p, c_char_p, c_size_t)
"""`asl_serve_sink`"""

FIELDS: list[tuple[str, Any]] = [
    ("user_data", c_void_p),
    ("size", CFUNCTYPE(c_bool, c_void_p, POINTER(Sizes), POINTER(c_char), c_size_t)),
    ("open", CFUNCTYPE(c_bool, c_void_p, c_void_p, _params_p, POINTER(Sizes), POINTER(c_char), c_size_t)),
    ("close", CFUNCTYPE(None, c_void_p)),
    ("check", CFUNCTYPE(c_bool, c_void_p, c_char_p, POINTER(c_char), c_size_t)),
    ("plan", CFUNCTYPE(c_int32, c_void_p, POINTER(Prompt), POINTER(Answer))),
    ("step", CFUNCTYPE(c_int32, c_void_p, c_int32, POINTER(Answer))),
    ("cancel", CFUNCTYPE(None, c_void_p, c_int32)),
    ("finished", CFUNCTYPE(None, c_void_p, c_int32, c_char_p, c_int32)),
    ("get", CFUNCTYPE(c_bool, c_void_p, c_char_p, Sink, c_void_p)),
    ("wait_seconds", c_int32),
]


class Engine(ctypes.Structure):
    """`asl_serve_engine`."""

    _fields_ = FIELDS


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "asl_serve_abi_version": (c_int32, []),
    "asl_serve_set_engine": (None, [POINTER(Engine)]),
    "asl_serve_options": (None, [Sink, c_void_p]),
    "asl_serve_run": (c_int, [c_int, POINTER(c_char_p)]),
}


def library_path() -> Path:
    """Where the server's library is, or would be."""
    name = {"win32": "llama-server-impl.dll", "darwin": "libllama-server-impl.dylib"}.get(
        sys.platform, "libllama-server-impl.so"
    )
    return loading.library_folder(list(_package_paths)) / name


def load() -> ctypes.CDLL:
    """The server's library, over the libllama that this process uses.

    Raises:
        LibraryError: it was not built, or is of another version.
    """
    path = library_path()
    if not path.exists():
        raise LibraryError(
            f"expected llama.cpp's server in {path}, found none; build it with `make serve`, or install with "
            'CMAKE_ARGS="-DASL_BUILD_SERVER=ON"'
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as err:
        raise LibraryError(f"{path} cannot be loaded: {err}. Reinstall asl_gguf on this machine.") from err
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if (found := library.asl_serve_abi_version()) != ABI_VERSION:
        raise LibraryError(f"expected asl-serve ABI version {ABI_VERSION}, {path} has {found}; reinstall asl_gguf")
    return library
