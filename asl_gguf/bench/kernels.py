"""Products of matrices on this machine: how fast each weight type is, and what `asl_dequant="auto"` does with it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..errors import OptionError
from ..native.bindings import lib

_N_TYPES = 64  # more than ggml_type has
_PLAIN = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Kernel:
    """One way to hold weights of a type."""

    type: str
    held: str
    """where they lie: `CPU` as stored in host memory; else the buffer type of llama.cpp that repacks them"""
    gflops: float
    auto: str
    """what `auto` does with the type, and why"""


def type_names() -> dict[str, int]:
    """Name -> ggml_type of every type that model weights can have."""
    names = {type_: lib.kernel_type_name(type_) for type_ in range(_N_TYPES)}
    return {name.decode(): type_ for type_, name in names.items() if name}


def rule() -> str:
    """Which types `auto` expands on this machine, in one line."""
    return str(lib.kernel_rule().decode())


def expands(type_: int) -> tuple[bool, str]:
    """Whether `auto` expands weights of a ggml_type, and why."""
    reason = ctypes.create_string_buffer(256)
    return bool(lib.kernel_expands(type_, reason, len(reason))), reason.value.decode()


def measure(type_: int, repacked: bool, shape: tuple[int, int, int], n_threads: int) -> tuple[float, str] | None:
    """1e9 operations per second of one product, and the name of the buffer type that held the weights.

    Args:
        shape: outputs, tokens, inputs.

    Returns:
        None where llama.cpp does not repack the type, or cannot compute the product.
    """
    gflops, held = ctypes.c_float(), ctypes.create_string_buffer(256)
    if not lib.kernel_measure(type_, repacked, *shape, n_threads, ctypes.byref(gflops), held, len(held)):
        return None
    return gflops.value, held.value.decode()


def bench_kernels(shape: tuple[int, int, int], n_threads: int, types: Sequence[str] = ()) -> list[Kernel]:
    """Every type as stored and, where llama.cpp repacks it, repacked; the quickest first.

    Args:
        types: names; none: all.
    """
    known = type_names()
    if unknown := [name for name in types if name not in known]:
        raise OptionError(f"--types: expected names among {', '.join(known)}, got {unknown[0]!r}")
    if min(shape) < 1 or shape[2] % 256:
        raise OptionError(f"--shape: expected positive numbers, the last a multiple of 256, got {shape}")
    rows = []
    for name in types or known:
        _, reason = expands(known[name])
        for repacked in (False, True):
            if measured := measure(known[name], repacked, shape, n_threads):
                says = reason if not repacked else "as repacked"
                rows.append(Kernel(name, measured[1], measured[0], "" if name in _PLAIN else says))
    return sorted(rows, key=lambda row: -row.gflops)


def to_json(rows: Sequence[Kernel]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def lines(rows: Sequence[Kernel]) -> list[str]:
    """A table for people."""
    result = [f"{'type':10} {'held':12} {'GF/s':>7}  auto"]
    result += [f"{row.type:10} {row.held:12} {row.gflops:7.1f}  {row.auto}".rstrip() for row in rows]
    return [*result, f"auto here: {rule()}"]
