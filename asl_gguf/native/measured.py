"""What K/V of a model take, asked of llama.cpp before memory is given to them.

A file's header does not tell: layers may have a state in place of K/V, keep latent vectors, or attend to K/V of others, and
which do is written down in llama.cpp alone. It can load a model and make contexts without memory for either.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from ..errors import NativeError, UnsupportedModelError
from .bindings import llama_cpp
from .context import assertions_caught
from .session import Session, unsupported_reason

_N_CELLS = 256


def kv_bytes(path: str, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Bytes of a cell of the decode context, over all layers, and of one of the prefill context, which has slots that layers
    share. None where the model cannot be loaded or pruned, or no context can be made: whoever does so says why.

    Args:
        arguments: of llama_cpp.Llama.
    """
    logger = logging.getLogger("llama-cpp-python")
    level = logger.level
    if not arguments.get("verbose"):  # the contexts that are used say the same again
        logger.setLevel(logging.CRITICAL)
    try:
        with ExitStack() as stack, assertions_caught():
            return _measure(path, arguments, stack)
    finally:
        logger.setLevel(level)


def _measure(path: str, arguments: Mapping[str, Any], stack: ExitStack) -> tuple[int, int] | None:
    of_model = llama_cpp.llama_model_default_params()
    of_model.no_alloc, of_model.load_mode, of_model.n_gpu_layers = True, llama_cpp.LLAMA_LOAD_MODE_NONE, 0
    overrides = _overrides(arguments.get("kv_overrides") or {})
    of_model.kv_overrides = overrides
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), of_model)
    if not model:
        return None
    stack.callback(llama_cpp.llama_model_free, model)
    if unsupported_reason(model):
        return None
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = _N_CELLS
    params.n_batch = params.n_ubatch = 32
    params.flash_attn_type = int(bool(arguments.get("flash_attn")))
    for name in ("type_k", "type_v"):
        if arguments.get(name) is not None:
            setattr(params, name, arguments[name])
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return None
    stack.callback(llama_cpp.llama_free, context)
    try:
        session = Session(context, params, _N_CELLS)
        stack.callback(session.close)
        session.begin([0] * _N_CELLS, 1)
    except (NativeError, UnsupportedModelError):
        return None
    info = session.info()
    return int(info.kv_bytes_cell), int(info.kv_bytes_prefill) // _N_CELLS


def _overrides(given: Mapping[str, Any]) -> ctypes.Array:
    """As llama.cpp takes them: one without a key is the last."""
    overrides = (llama_cpp.llama_model_kv_override * (len(given) + 1))()
    for override, (key, value) in zip(overrides, given.items()):
        override.key = key.encode()
        if isinstance(value, bool):
            override.tag, override.value.val_bool = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            override.tag, override.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            override.tag, override.value.val_f64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            override.tag, override.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return overrides
