"""What a saved state depends on: two objects exchange states if they agree in all of it."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..errors import StateError
from ..models.parts import parts_of
from ..native import context
from ..native.bindings import llama_cpp

Fingerprint = Mapping[str, str]
"""settings by name"""

_CONTEXT_SETTINGS = ("type_k", "type_v", "flash_attn_type", "rope_scaling_type", "rope_freq_base", "rope_freq_scale")
_YARN_SETTINGS = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 14


def fingerprint_of(
    model: Any,
    path: str,
    params: Any,
    n_ctx: int,
    overrides: Mapping[str, object] | None,
    pruning: Mapping[str, object],
) -> Fingerprint:
    """The origin of states that a `Llama` saves, apart from its adapters, which may change (`with_adapters`).

    Args:
        params: llama_context_params of its decode context.
        n_ctx: longest prompt and answer, which chooses the rope factors of some models.
        overrides: kv_overrides of the model.
        pruning: the options that decide what is kept.
    """
    settings = {name: str(getattr(params, name)) for name in (*_CONTEXT_SETTINGS, *_YARN_SETTINGS)}
    return {
        "model file": _digest(Path(path)),
        "llama_cpp": llama_cpp.__version__,
        "asl_gguf": __version__,
        "kv_overrides": describe(overrides or None),
        "long rope factors": str(_uses_long_factors(model, n_ctx)),
        **settings,
        **{name: describe(value) for name, value in pruning.items()},
    }


def with_adapters(origin: Fingerprint, ctx: Any) -> Fingerprint:
    """The origin of states whose K/V a context has now: with its LoRA adapters and control vectors, whoever has set them."""
    return {**origin, "LoRA and control vectors": context.adapters(ctx)}


def check_fingerprint(found: Fingerprint, expected: Fingerprint) -> None:
    """Raises StateError if a state of `found` does not belong where `expected` is."""
    differing = [
        f"{name} {expected.get(name)}, got {found.get(name)}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise StateError(f"expected a state with {'; '.join(differing)}. Use those settings, or prefill again")


def settings_digest(origin: Fingerprint) -> str:
    """A short text that stands for these settings."""
    return hashlib.sha256(repr(sorted(origin.items())).encode()).hexdigest()[:32]


def describe(value: object, depth: int = 4) -> str:
    """The same text for equal settings, in every process; objects of a user's own are told apart by their attributes.

    Args:
        depth: objects within objects up to which it looks; deeper ones are named by their type alone.
    """

    def inner(values: Iterable[object]) -> list[str]:
        return [describe(item, depth - 1) for item in values]

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(inner(value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(map(': '.join, zip(inner(value), inner(value.values())))))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(inner(value)))}}}"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"{value.dtype}{list(value.shape)} {digest}"
    if isinstance(value, re.Pattern):
        return f"{value.pattern!r} with flags {value.flags}"
    if isinstance(value, int) and value.bit_length() > 1024:  # Python writes no decimals of 4,300 digits
        return hex(value)
    if isinstance(value, (str, bytes, int, float, type(None))):
        return repr(value)
    if isinstance(value, type) or inspect.isroutine(value):
        line = getattr(getattr(value, "__code__", None), "co_firstlineno", "")
        return f"{value.__module__}.{value.__qualname__} {line}".strip()
    attributes = _attributes(value) if depth > 0 else {}
    if is_dataclass(value) or attributes:
        return f"{type(value).__name__}({', '.join(map('='.join, zip(attributes, inner(attributes.values()))))})"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _attributes(value: object) -> dict[str, object]:
    declared = {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else {}
    return declared | getattr(value, "__dict__", {})


def _digest(path: Path) -> str:
    """Tells models apart without reading their files whole: a hash of the sizes and of samples of the bytes."""
    digest = hashlib.sha256()
    for part in parts_of(path):
        size = part.stat().st_size
        digest.update(str(size).encode())
        with part.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _uses_long_factors(model: Any, n_ctx: int) -> bool:
    """Whether LongRoPE takes its long factors (`llama_model::get_rope_factors`)."""
    original = _meta(model, f"{_meta(model, 'general.architecture')}.rope.scaling.original_context_length")
    return bool(original) and n_ctx > int(original)


def _meta(model: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(128)
    n_bytes = llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode() if n_bytes > 0 else ""
