"""What `llama_cpp.Llama.__init__` refuses, as typed errors that name the argument and what to do.

Each stays an instance of what the parent raises. Where the parent would end the process (a cache type that ggml does not
have, an adapter that does not load) the error comes before that.
"""

from __future__ import annotations

import ctypes
import inspect
import math
import os
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AdapterError, ModelError, OptionError, OptionTypeError, shown
from ..models import gguf_header
from ..native import context, measured
from ..native.bindings import llama_cpp
from ..native.logged import Logged, errors_logged
from .values import INT32, SEEDS, checked_float

_RANGES = {
    "n_batch": range(1, 2**31), "n_ubatch": range(2**31), "n_threads": range(-(2**31), 513),
    "n_threads_batch": range(-(2**31), 513), "n_gpu_layers": INT32, "split_mode": INT32, "main_gpu": INT32,
    "rope_scaling_type": INT32, "pooling_type": INT32, "attention_type": INT32, "yarn_orig_ctx": range(2**32),
    "last_n_tokens_size": INT32, "seed": SEEDS,
}  # fmt: skip
"""integers that ctypes would cut to C's without a word; ggml has no more than 512 threads"""
_FLOATS = (
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "lora_scale"
)  # fmt: skip
_ROPE_WIDTHS = range(2, 2**16, 2)
_CACHE_TYPES = (0, 1, 2, 3, 6, 7, 8, 20, 30)
"""ggml types of a cache that llama.cpp's own programs offer; it ends the process under most others"""
_FEW_CELLS = 2**20
"""fewer are not worth a look at the model's header"""
_SPARE_FACTOR = 2
"""a header may say more K/V than an architecture keeps, but not twice as much"""
_ANNOTATED: dict[str, tuple[type, ...]] = {
    "int": (Integral,),
    "float": (Real,),
    "str": (str,),
    "List[float]": (list, tuple),
    "Dict[str, Union[bool, int, float, str]]": (Mapping,),
}
"""annotations of the parent's arguments -> what they may be"""
_TYPES = {
    value: name.removeprefix("GGML_TYPE_")
    for name, value in vars(llama_cpp).items()
    if name.startswith("GGML_TYPE_") and name != "GGML_TYPE_COUNT"
}
_TYPES |= {30: "BF16", 34: "TQ1_0", 35: "TQ2_0"}  # llama_cpp does not name these


def check(n_ctx: object, arguments: Mapping[str, Any]) -> None:
    """Checks what the parent would crash on, or take for another number.

    Raises:
        OptionError: an integer, type_k or type_v is outside its domain.
        AdapterError: there is no file at lora_path.
    """
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, Integral) or int(n_ctx) not in range(2**31):
        raise OptionError(
            f"n_ctx: expected a number of tokens below 2**31, or 0 for the model's training context, got {shown(n_ctx)}"
        )
    _check_integers(arguments)
    for name in ("vocab_only", "logits_all", "embedding"):
        if not isinstance(value := arguments.get(name), (bool, Integral, np.bool_, type(None))):
            raise OptionTypeError(f"{name}: expected True or False, got {shown(value)}")
    _check_floats(arguments)
    for name in ("type_k", "type_v"):
        kind = arguments.get(name)
        if isinstance(kind, Integral) and kind not in _CACHE_TYPES:
            known = ", ".join(f"{_TYPES[each]} ({each})" for each in _CACHE_TYPES)
            raise OptionError(f"{name}: expected one of the ggml types {known}, got {_TYPES.get(int(kind), kind)}")
    for key, value in _overrides(arguments).items():
        _check_override(key, value)
    _check_adapter(arguments.get("lora_path"))


def _check_integers(arguments: Mapping[str, Any]) -> None:
    for name, allowed in _RANGES.items():
        value = arguments.get(name)
        if isinstance(value, Integral) and int(value) not in allowed:
            raise OptionError(f"{name}: expected an integer from {allowed[0]} to {allowed[-1]}, got {shown(value)}")
    for name in ("last_n_tokens_size", "seed"):  # the parent hands them on as they are, at the first prompt
        value = arguments.get(name, 0)
        if not isinstance(value, Integral) and not (value is None and name == "seed"):
            raise OptionTypeError(f"{name}: expected an integer, got {shown(value)}")


def _check_floats(arguments: Mapping[str, Any]) -> None:
    for name in _FLOATS:
        if isinstance(arguments.get(name), Real):
            checked_float(name, arguments[name])
    if isinstance(shares := arguments.get("tensor_split"), (list, tuple)):
        for share in shares:
            checked_float("tensor_split", share)


def _check_adapter(path: object) -> None:
    if path is not None and not isinstance(path, str):
        raise OptionTypeError(f"lora_path: expected a path as a str, or None, got {path!r:.60}")
    if path and not Path(path).is_file():
        raise AdapterError(f"lora_path: expected a GGUF file with a LoRA adapter, got {path}, which is no file")


def _check_override(key: object, value: object) -> None:
    if not isinstance(key, str):
        raise OptionTypeError(f"kv_overrides: expected keys as str, got {key!r:.60}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise OptionError(f"kv_overrides: expected integers of 64 bits, got {shown(value)} for {key}")
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"kv_overrides: expected finite numbers, got {value} for {key}")
    if ".rope.dimension_count" in key and type(value) is int and value not in _ROPE_WIDTHS:
        raise OptionError(
            f"kv_overrides: expected an even number from {_ROPE_WIDTHS[0]} to {_ROPE_WIDTHS[-1]} for {key}, got {value}"
        )


def check_computes(llm: llama_cpp.Llama, overrides: Mapping[str, Any]) -> None:
    """Raises ModelError if kv_overrides make llama.cpp fail as it computes, which would end the process at the first prompt."""
    if reason := context.probe(llm.ctx):
        raise ModelError(
            f"kv_overrides: expected values that {Path(llm.model_path).name} can be computed with, got {dict(overrides)!r:.200}: "
            f"{reason.rpartition('/')[2]}"
        )


def _overrides(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    found = arguments.get("kv_overrides")
    return found if isinstance(found, Mapping) else {}


def check_cells(path: str, n_cells: int, arguments: Mapping[str, Any]) -> None:
    """Refuses a context that this machine could not hold, where memory is promised before it is there.

    Raises:
        OptionError: n_cells are more than C counts, or their K/V take more than the machine has.
    """
    if n_cells not in range(2**31):
        raise OptionError(f"expected fewer than 2**31 KV cells, got {n_cells}; lower asl_decode_ctx, asl_room or n_ctx")
    if arguments.get("n_gpu_layers") or arguments.get("swa_full") is False or n_cells < _FEW_CELLS:
        return
    try:
        n_bytes = n_cells * _cell_bytes(path, arguments)
        n_bytes_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ModelError, AttributeError, OSError, ValueError):  # whoever loads the model says so; Windows does not say
        return
    if n_bytes > _SPARE_FACTOR * n_bytes_machine:
        raise OptionError(
            f"expected a context within the {n_bytes_machine / 2**30:.0f} GiB of this machine, got {n_cells} KV cells of "
            f"{n_bytes / 2**30:.0f} GiB; lower n_ctx, asl_budget or asl_decode_ctx, or take a smaller type_k"
        )


def _cell_bytes(path: str, arguments: Mapping[str, Any]) -> int:
    """What a cell takes over all layers: measured, or, where that cannot be, as the header has it."""
    if measured_bytes := measured.kv_bytes(path, arguments):
        return measured_bytes[0]
    types = [
        llama_cpp.GGML_TYPE_F16 if (kind := arguments.get(name)) is None else kind for name in ("type_k", "type_v")
    ]
    widths = gguf_header.cache_widths(path, arguments)
    return sum(sum(map(gguf_header.row_bytes, types, pair)) for pair in widths)


def without_adapter(arguments: dict[str, Any]) -> dict[str, Any]:
    """The parent's arguments without its LoRA file, which `attach_adapter` sees to.

    The parent hands on the null pointer of an adapter that did not load, which ends the process.
    """
    return arguments | {"lora_path": None, "use_mmap": False} if arguments.get("lora_path") else arguments


def attach_adapter(llm: llama_cpp.Llama, lora_path: str) -> None:
    """Loads a LoRA adapter as the parent does, with its lora_scale.

    Raises:
        AdapterError: llama.cpp refuses the file.
    """
    with errors_logged() as logged:
        adapter = llama_cpp.llama_adapter_lora_init(llm._model.model, lora_path.encode())
    llm.lora_path, llm._lora_adapter = lora_path, adapter
    if adapter:
        llm._stack.callback(llama_cpp.llama_adapter_lora_free, adapter)
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(llm.lora_scale)
        if llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, 1, scales) == 0:
            return
    raise AdapterError(
        f"lora_path: expected a GGUF file with a LoRA adapter for {Path(llm.model_path).name}, got {lora_path}"
        f"{logged.because}; check that it was made for this model"
    )


def translated(
    error: Exception, path: str, n_ctx: int, arguments: Mapping[str, Any], logged: Logged
) -> Exception | None:
    """The typed error for what the parent's `__init__` raised, None if the caller can do nothing about it.

    Args:
        n_ctx: tokens of the context that was asked for.
        arguments: the other keyword arguments.
        logged: what llama.cpp said.
    """
    text = str(error)
    if isinstance(error, MemoryError):
        return OptionError(
            f"expected memory for n_ctx {n_ctx} and n_batch {arguments.get('n_batch', 512)}: {text}; lower them"
        )
    if isinstance(error, ValueError):
        return _of_value(text, path, n_ctx, arguments, logged)
    if isinstance(error, (TypeError, AttributeError)):
        return _of_type(arguments)
    return None


def _of_value(text: str, path: str, n_ctx: int, arguments: Mapping[str, Any], logged: Logged) -> Exception | None:
    if re.match("Failed to (load model|get vocab)", text):
        overridden = " and kv_overrides" if arguments.get("kv_overrides") else ""
        return ModelError(
            f"expected a GGUF model that llama.cpp can load, got {path}{logged.because}; check the file{overridden}"
        )
    if text.startswith("Failed to create llama_context"):
        return _of_context(path, n_ctx, arguments, logged)
    if match := re.match(r"Unknown value type for (.*?):|Value for (.*?) is too long|bytes too long", text):
        key = match[1] or match[2]
        got = f"{arguments['kv_overrides'][key]!r:.60} for {key}" if key else "a longer key"
        return OptionError(
            "kv_overrides: expected a bool, int, float or str of at most 128 bytes for each key of less than 128 bytes, "
            f"got {got}"
        )
    if text.startswith("Attempt to split tensors"):
        return OptionError(
            f"tensor_split: expected at most {llama_cpp.LLAMA_MAX_DEVICES} shares, one for each device, "
            f"got {len(arguments['tensor_split'])}"
        )
    return None


_BLOCK = 32  # values of a block of each quantised cache type


def _of_context(path: str, n_ctx: int, arguments: Mapping[str, Any], logged: Logged) -> OptionError:
    """Why llama.cpp makes no context: it returns nothing but NULL."""
    kind = _TYPES.get(arguments.get("type_v", llama_cpp.GGML_TYPE_F16), "F16")
    if kind not in ("F32", "F16", "BF16") and not arguments.get("flash_attn"):
        return OptionError(f"type_v: expected flash_attn=True with the quantised type {kind}, got False")
    for name, width in zip(("type_k", "type_v"), gguf_header.head_widths(path, arguments.get("kv_overrides"))):
        kind = _TYPES.get(arguments.get(name, llama_cpp.GGML_TYPE_F16), "F16")
        if kind not in ("F32", "F16", "BF16") and width % _BLOCK:
            return OptionError(
                f"{name}: expected F32, F16 or BF16 for this model, whose heads of {width} values no block of {_BLOCK} fills, "
                f"got {kind}"
            )
    return OptionError(
        f"expected memory for a context of {n_ctx} KV cells, got none from llama.cpp{logged.because}; lower n_ctx, asl_budget "
        "or asl_decode_ctx, or take a smaller type_k"
    )


def _of_type(arguments: Mapping[str, Any]) -> OptionTypeError | None:
    """The first argument that is not of the type that the parent annotates."""
    parameters = inspect.signature(llama_cpp.Llama.__init__).parameters
    for name, value in arguments.items():
        annotation = str(parameters[name].annotation) if name in parameters else ""
        optional = re.fullmatch(r"Optional\[(.*)\]", annotation)
        kinds = _ANNOTATED.get(optional[1] if optional else annotation)
        if kinds and not isinstance(value, kinds) and not (optional and value is None):
            return OptionTypeError(f"{name}: expected {annotation}, got {value!r:.60}")
    return None
