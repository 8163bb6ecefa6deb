"""Products of matrices on this machine: how fast each weight type is, and what `asl_dequant="auto"` does with it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..errors import OptionError
from ..native.bindings import lib

_N_TYPES = 64  # more than ggml_type has
_PLAIN = ("f32", "f16", "bf16")

STORED, REPACKED, INT8, INT16 = range(4)
"""ways to hold weights: in host memory, as llama.cpp repacks them, packed by us with activations of 8 or 16 bits"""


@dataclass(frozen=True)
class Kernel:
    """One way to hold weights of a type."""

    type: str
    held: str
    """`CPU`: as stored in host memory; `packed int8`, `packed int16`; else the buffer type of llama.cpp's repacked form"""
    gflops: float
    pack_ns: float
    """nanoseconds a weight that packing takes from this form, once a prompt; 0: it cannot be packed"""
    auto: str
    """what `auto` does with the type, and why"""


def type_names() -> dict[str, int]:
    """Name -> ggml_type of every type that model weights can have."""
    names = {type_: lib.kernel_type_name(type_) for type_ in range(_N_TYPES)}
    return {name.decode(): type_ for type_, name in names.items() if name}


def rule() -> str:
    """Which types `auto` packs or expands on this machine, in one line."""
    return str(lib.kernel_rule().decode())


def expands(type_: int) -> tuple[bool, str]:
    """Whether `auto` packs or expands weights of a ggml_type, and why."""
    reason = ctypes.create_string_buffer(256)
    return bool(lib.kernel_expands(type_, reason, len(reason))), reason.value.decode()


def peak(n_bits: int) -> float:
    """1e9 operations per CPU second that one core can do: F32 (32), integers of 16 or 8 bits. 0: not known."""
    return float(lib.kernel_peak(n_bits))


def packed_kernel() -> str:
    """The kernel of products with packed weights that is in force: `scalar`, `AVX2` or `AVX-512 VNNI`."""
    return str(lib.packed_kernel_name().decode())


def repacked_form(type_: int) -> tuple[int, int] | None:
    """How llama.cpp repacks weights of a ggml_type on this machine: rows whose blocks are interleaved, bytes of a row together.

    Returns:
        None where it does not, or in a way that packing does not know.
    """
    rows, chunk = ctypes.c_int32(), ctypes.c_int32()
    return (rows.value, chunk.value) if lib.kernel_repacked(type_, ctypes.byref(rows), ctypes.byref(chunk)) else None


def measure(type_: int, held: int, shape: tuple[int, int, int], n_threads: int) -> tuple[float, str, float] | None:
    """How fast one product is.

    Args:
        held: one of `STORED`, `REPACKED`, `INT8`, `INT16`.
        shape: outputs, tokens, inputs.

    Returns:
        1e9 operations per second, the name of the buffer type that held the weights, and nanoseconds a weight that packing
        takes from there (0: it cannot be packed). None where weights of the type are not held so, or the product cannot
        be computed.
    """
    gflops, pack_ns, name = ctypes.c_float(), ctypes.c_float(), ctypes.create_string_buffer(256)
    numbers = (ctypes.byref(gflops), ctypes.byref(pack_ns))
    if not lib.kernel_measure(type_, held, *shape, n_threads, *numbers, name, len(name)):
        return None
    return gflops.value, name.value.decode(), pack_ns.value


def bench_kernels(shape: tuple[int, int, int], n_threads: int, types: Sequence[str] = ()) -> list[Kernel]:
    """Every type as stored and, where there is such a form, repacked by llama.cpp and packed by us; the quickest first.

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
        for held in (STORED, REPACKED, INT8, INT16):
            if measured := measure(known[name], held, shape, n_threads):
                gflops, buffer, pack_ns = measured
                says = "" if name in _PLAIN or held != STORED else reason
                rows.append(Kernel(name, buffer, gflops, pack_ns, says))
    return sorted(rows, key=lambda row: -row.gflops)


def to_json(rows: Sequence[Kernel]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def lines(rows: Sequence[Kernel]) -> list[str]:
    """A table for people."""
    result = [f"{'type':10} {'held':14} {'GF/s':>7} {'pack ns':>7}  auto"]
    for row in rows:
        pack_ns = f"{row.pack_ns:7.2f}" if row.pack_ns else f"{'':7}"
        result.append(f"{row.type:10} {row.held:14} {row.gflops:7.1f} {pack_ns}  {row.auto}".rstrip())
    return [*result, f"auto here: {rule()}"]
