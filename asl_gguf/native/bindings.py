"""ctypes bindings of native/include/asl.h and asl-kernels.h, and nothing else. A test compares them with the header."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from ctypes import (
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import TYPE_CHECKING, Any

from .. import __path__ as _package_paths
from ..errors import (
    ContextFullError,
    LibraryError,
    NativeError,
    OptionError,
    OutOfMemoryError,
    PrefillCancelled,
    UnsupportedModelError,
)
from . import loading

if TYPE_CHECKING:
    import llama_cpp
else:
    llama_cpp = loading.load(list(_package_paths))

ABI_VERSION = 11

OK = 0
ERR_ARGUMENT = 1
ERR_UNSUPPORTED = 2
ERR_STATE = 3
ERR_MEMORY = 4
ERR_COMPUTE = 5
CANCELLED = 6
ERR_INTERNAL = 7
ERR_CELLS = 8

DEQUANT_OFF = 0
DEQUANT_AUTO = 1
DEQUANT_ALL = 2
DEQUANT_INT8 = 3
DEQUANT_INT16 = 4

progress_callback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_int64, c_int64)


class session_info(ctypes.Structure):
    """`asl_session_info`."""

    _fields_ = [
        ("n_layer", c_int32),
        ("next_layer", c_int32),
        ("n_tokens", c_int32),
        ("n_current", c_int32),
        ("n_window", c_int32),
        ("n_past", c_int32),
        ("n_cells", c_int32),
        ("n_cells_used", c_int32),
        ("n_cells_sliding", c_int32),
        ("n_cells_sliding_used", c_int32),
        ("n_head", c_int32),
        ("n_head_kv", c_int32),
        ("n_embd_head_k", c_int32),
        ("n_hidden", c_int32),
        ("n_dequantised", c_int32),
        ("n_parts", c_int32),
        ("n_graphs", c_int32),
        ("host_us", c_int64),
        ("kv_bytes_cell", c_int64),
        ("kv_bytes_cell_sliding", c_int64),
        ("kv_bytes_decode", c_int64),
        ("kv_bytes_prefill", c_int64),
        ("kv_bytes_prefill_peak", c_int64),
        ("host_bytes", c_int64),
        ("device_bytes", c_int64),
        ("attention", c_char * 160),
    ]


class attention_case(ctypes.Structure):
    """`asl_attention_case`."""

    _fields_ = [
        *((name, c_int32) for name in ("n_tokens", "n_past", "n_head", "n_head_kv", "n_embd_k", "n_embd_v", "n_swa")),
        *((name, c_int32) for name in ("n_queries", "type_k", "type_v", "n_threads")),
        *((name, c_bool) for name in ("v_transposed", "is_rounded")),
        *((name, c_float) for name in ("scale", "cap", "cap_scale")),
        *((name, c_void_p) for name in ("q", "k", "v", "sinks", "mask", "weights")),
    ]


_context_params_p = POINTER(llama_cpp.llama_context_params)

# name -> (result, arguments), as in asl.h
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "asl_abi_version": (c_int32, []),
    "asl_model_check": (c_int, [c_void_p, c_char_p, c_size_t]),
    "asl_model_get_sliding": (c_int32, [c_void_p, POINTER(c_bool)]),
    "asl_kernel_rule": (c_char_p, []),
    "asl_kernel_type_name": (c_char_p, [c_int32]),
    "asl_kernel_expands": (c_bool, [c_int32, c_char_p, c_size_t]),
    "asl_kernel_measure": (
        c_bool,
        [c_int32] * 6 + [POINTER(c_float), POINTER(c_float), c_char_p, c_size_t],
    ),
    "asl_kernel_repacked": (c_bool, [c_int32, POINTER(c_int32), POINTER(c_int32)]),
    "asl_kernel_peak": (c_float, [c_int32]),
    "asl_packed_kernel_name": (c_char_p, []),
    "asl_packed_product": (
        c_bool,
        [c_char_p, c_int32, c_void_p, *[c_int32] * 5, POINTER(c_float), c_int32, POINTER(c_float)],
    ),
    "asl_packed_experts": (
        c_bool,
        [
            *[c_char_p, c_int32, c_void_p, *[c_int32] * 6, POINTER(c_int32), c_int32],
            *[POINTER(c_float), c_int32, c_int32, c_int32, POINTER(c_float)],
        ],
    ),
    "asl_row_product": (
        c_bool,
        [c_char_p, c_int32, c_void_p, c_int32, c_int32, POINTER(c_float), c_int32, POINTER(c_float)],
    ),
    "asl_context_set_dequant": (None, [c_void_p, c_int]),
    "asl_attention_kernel_name": (c_char_p, []),
    "asl_attention_compute": (c_bool, [c_char_p, POINTER(attention_case), POINTER(c_float), POINTER(c_float)]),
    "asl_short_convolution": (c_bool, [c_char_p, *[POINTER(c_float)] * 3, *[c_int32] * 4, *[POINTER(c_float)] * 2]),
    "asl_delta_nets": (c_bool, [c_char_p, *[POINTER(c_float)] * 6, *[c_int32] * 6, *[POINTER(c_float)] * 2]),
    "asl_model_has_alibi": (c_bool, [c_void_p]),
    "asl_model_can_drop_tokens": (c_bool, [c_void_p]),
    "asl_context_kv_bytes": (c_int64, [c_void_p]),
    "asl_context_state_bytes": (c_int64, [c_void_p]),
    "asl_context_get_kv_resident": (c_bool, [c_void_p, POINTER(c_int64)]),
    "asl_session_init": (c_void_p, [c_void_p, _context_params_p, c_uint32, c_char_p, c_size_t]),
    "asl_session_free": (None, [c_void_p]),
    "asl_session_last_error": (c_char_p, [c_void_p]),
    "asl_session_set_progress": (c_int, [c_void_p, progress_callback, c_void_p]),
    "asl_session_set_dequant": (c_int, [c_void_p, c_int]),
    "asl_session_get_info": (c_int, [c_void_p, POINTER(session_info)]),
    "asl_context_get_first_cells": (c_bool, [c_void_p, POINTER(c_int32)]),
    "asl_context_get_shifts": (c_int64, [c_void_p, POINTER(c_float), c_int64]),
    "asl_context_set_shifts": (c_bool, [c_void_p, POINTER(c_float), c_int64]),
    "asl_context_set_first_cells": (c_bool, [c_void_p, POINTER(c_int32)]),
    "asl_context_set_logits": (c_bool, [c_void_p, POINTER(c_float)]),
    "asl_context_get_adapters": (c_bool, [c_void_p, POINTER(c_uint64)]),
    "asl_throw_on_abort": (None, [c_bool]),
    "asl_context_probe": (c_bool, [c_void_p, c_char_p, c_size_t]),
    "asl_context_get_free_cells": (c_int32, [c_void_p, c_int32]),
    "asl_context_move": (c_int, [c_void_p, c_int32, c_void_p, c_int32, c_bool, c_char_p, c_size_t]),
    "asl_session_begin": (c_int, [c_void_p, POINTER(c_int32), c_int32, c_int32, c_int32]),
    "asl_session_extend": (c_int, [c_void_p, POINTER(c_int32), c_int32, c_int32]),
    "asl_session_rank_by": (c_int, [c_void_p, c_bool]),
    "asl_context_has_indexer": (c_bool, [c_void_p]),
    "asl_session_set_window": (c_int, [c_void_p, c_int32, POINTER(c_float)]),
    "asl_session_set_past": (c_int, [c_void_p, c_int32]),
    "asl_session_row_bytes": (c_int, [c_void_p, c_int32, POINTER(c_int64)]),
    "asl_session_key_bytes": (c_int, [c_void_p, c_int32, POINTER(c_int64)]),
    "asl_session_save_rows": (c_int, [c_void_p, c_int32, c_int32, c_void_p, c_int64]),
    "asl_session_load_rows": (c_int, [c_void_p, c_void_p, c_int64]),
    "asl_session_state_bytes": (c_int, [c_void_p, c_int32, POINTER(c_int64)]),
    "asl_session_set_state_ends": (c_int, [c_void_p, POINTER(c_int32), c_int32]),
    "asl_session_save_state": (c_int, [c_void_p, c_int32, c_void_p, c_int64]),
    "asl_session_load_state": (c_int, [c_void_p, c_void_p, c_int64]),
    "asl_session_save_hidden": (c_int, [c_void_p, c_int32, c_int32, POINTER(c_float), c_int64]),
    "asl_session_load_hidden": (c_int, [c_void_p, POINTER(c_float), c_int64]),
    "asl_session_run": (c_int, [c_void_p, c_int32, c_bool]),
    "asl_session_start": (c_int, [c_void_p, c_int32, c_bool]),
    "asl_session_step": (c_int, [c_void_p, POINTER(c_bool)]),
    "asl_session_get_scores": (c_int, [c_void_p, POINTER(c_float)]),
    "asl_session_get_queries": (c_int, [c_void_p, POINTER(c_float)]),
    "asl_session_get_keys": (c_int, [c_void_p, POINTER(c_float)]),
    "asl_session_keep_rows": (c_int, [c_void_p, POINTER(c_int32), c_int32, c_bool]),
    "asl_session_shrink_rows": (c_int, [c_void_p, c_int32, POINTER(c_int32), c_int32, c_bool]),
    "asl_session_keep_tokens": (c_int, [c_void_p, POINTER(c_int32), c_int32]),
    "asl_session_layer_bytes": (c_int, [c_void_p, c_int32, POINTER(c_int64)]),
    "asl_session_save_layer": (c_int, [c_void_p, c_void_p, c_int64]),
    "asl_session_load_layer": (c_int, [c_void_p, c_int32, c_void_p, c_int64]),
    "asl_session_finish": (c_int, [c_void_p]),
    "asl_session_start_finish": (c_int, [c_void_p]),
    "asl_session_abort": (c_int, [c_void_p]),
    "asl_split_words": (c_int32, [c_char_p, c_char_p, c_bool, POINTER(c_int32), c_int32]),
    "asl_tokenize_by_std_regex": (None, [c_bool]),
}


_RANGES = {c_int32: range(-(2**31), 2**31), c_int64: range(-(2**63), 2**63), c_uint32: range(2**32)}


def _exact(name: str, function: Any, arguments: list[Any]) -> Callable[..., Any]:
    """The function, with integers that are not C's refused: ctypes would cut them to size without a word."""
    integers = [(i, _RANGES[kind]) for i, kind in enumerate(arguments) if kind in _RANGES]
    if not integers:
        return function

    def call(*values: Any) -> Any:
        given = list(values)
        for i, allowed in integers:
            try:
                given[i] = operator.index(values[i])
            except TypeError:
                raise OptionError(f"{name}: expected an integer, got {values[i]!r:.80}") from None
            if given[i] not in allowed:
                raise OptionError(f"{name}: expected an integer from {allowed[0]} to {allowed[-1]}, got {given[i]}")
        return function(*given)

    call.restype, call.argtypes = function.restype, arguments  # type: ignore[attr-defined]
    return call


class _Functions:
    """The functions of asl.h as attributes, without their prefix."""

    def __init__(self, library: ctypes.CDLL) -> None:
        if not loading.has_symbol(library, "asl_abi_version"):
            raise LibraryError(
                f"{library._name} is a llama.cpp without asl; unset LLAMA_CPP_LIB_PATH and reinstall asl_gguf"
            )
        # before the rest: a library of another version may lack functions
        if (found := library.asl_abi_version()) != ABI_VERSION:
            raise LibraryError(
                f"expected asl ABI version {ABI_VERSION}, {library._name} has {found}; reinstall asl_gguf"
            )
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, name.removeprefix("asl_"), _exact(name, function, arguments))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"asl.h has no function asl_{name}")


lib = _Functions(llama_cpp.llama_cpp._lib)

_ERRORS = {
    ERR_ARGUMENT: OptionError,
    ERR_UNSUPPORTED: UnsupportedModelError,
    CANCELLED: PrefillCancelled,
    ERR_CELLS: ContextFullError,
    ERR_MEMORY: OutOfMemoryError,
}


def to_error(status: int, message: bytes) -> Exception:
    """The error that belongs to a status other than OK."""
    return _ERRORS.get(status, NativeError)(message.decode("utf-8", "replace"))


def check(status: int, session: int) -> None:
    """Raises the error that belongs to a status other than OK."""
    if status != OK:
        raise to_error(status, lib.session_last_error(session))
