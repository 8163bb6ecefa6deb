"""What `llama_cpp.Llama.__init__` refuses, as typed errors that name the argument and what to do.

Each stays an instance of what the parent raises. Where the parent would end the process (a cache type that ggml does not
have, an adapter that does not load) the error comes before that.
"""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import AdapterError, ModelError, OptionError, OptionTypeError
from ..native.bindings import llama_cpp

_MAX_N_CTX = 2**31 - 1  # positions are int32
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
    """Checks what the parent would crash on.

    Raises:
        OptionError: n_ctx, n_batch, type_k or type_v is outside its domain.
        AdapterError: there is no file at lora_path.
    """
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 0 <= n_ctx <= _MAX_N_CTX:
        raise OptionError(
            f"n_ctx: expected a number of tokens below 2**31, or 0 for the model's training context, got {n_ctx!r}"
        )
    n_batch = arguments.get("n_batch")
    if isinstance(n_batch, int) and n_batch < 1:
        raise OptionError(f"n_batch: expected at least 1 token, got {n_batch}")
    for name in ("type_k", "type_v"):
        kind = arguments.get(name)
        if isinstance(kind, int) and kind not in _TYPES:
            raise OptionError(
                f"{name}: expected a ggml type such as llama_cpp.GGML_TYPE_F16 or GGML_TYPE_Q8_0, got {kind}"
            )
    lora = arguments.get("lora_path")
    if lora is not None and not isinstance(lora, str):
        raise OptionTypeError(f"lora_path: expected a path as a str, or None, got {lora!r:.60}")
    if lora and not Path(lora).is_file():
        raise AdapterError(f"lora_path: expected a GGUF file with a LoRA adapter, got {lora}, which is no file")


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
    adapter = llama_cpp.llama_adapter_lora_init(llm._model.model, lora_path.encode())
    llm.lora_path, llm._lora_adapter = lora_path, adapter
    if adapter:
        llm._stack.callback(llama_cpp.llama_adapter_lora_free, adapter)
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(llm.lora_scale)
        if llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, 1, scales) == 0:
            return
    raise AdapterError(
        f"lora_path: expected a GGUF file with a LoRA adapter for {Path(llm.model_path).name}, got {lora_path}; check that "
        "it was made for this model, or pass verbose=True for llama.cpp's reason"
    )


def translated(error: Exception, path: str, n_ctx: int, arguments: Mapping[str, Any]) -> Exception | None:
    """The typed error for what the parent's `__init__` raised, None if the caller can do nothing about it.

    Args:
        n_ctx: tokens of the context that was asked for.
        arguments: the other keyword arguments.
    """
    text = str(error)
    if isinstance(error, ValueError):
        return _of_value(text, path, n_ctx, arguments)
    if isinstance(error, (TypeError, AttributeError)):
        return _of_type(arguments)
    return None


def _of_value(text: str, path: str, n_ctx: int, arguments: Mapping[str, Any]) -> Exception | None:
    if re.match("Failed to (load model|get vocab)", text):
        overridden = " and kv_overrides" if arguments.get("kv_overrides") else ""
        return ModelError(
            f"expected a GGUF model that llama.cpp can load, got {path}; "
            f"check the file{overridden}, or pass verbose=True for llama.cpp's reason"
        )
    if text.startswith("Failed to create llama_context"):
        return _of_context(n_ctx, arguments)
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


def _of_context(n_ctx: int, arguments: Mapping[str, Any]) -> OptionError:
    """Why llama.cpp makes no context: it returns nothing but NULL."""
    kind = _TYPES.get(arguments.get("type_v", llama_cpp.GGML_TYPE_F16), "F16")
    if kind not in ("F32", "F16", "BF16") and not arguments.get("flash_attn"):
        return OptionError(f"type_v: expected flash_attn=True with the quantised type {kind}, got False")
    return OptionError(
        f"expected memory for a context of {n_ctx} KV cells, got none from llama.cpp; lower n_ctx, asl_budget or "
        "asl_decode_ctx, take a smaller type_k, or pass verbose=True for llama.cpp's reason"
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
