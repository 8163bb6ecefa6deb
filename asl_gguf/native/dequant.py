"""Modes of `asl_dequant`: with what kernels products of quantised weights are computed."""

from __future__ import annotations

from . import bindings
from .bindings import lib

DEQUANT_MODES = {
    "off": bindings.DEQUANT_OFF,
    "auto": bindings.DEQUANT_AUTO,
    "all": bindings.DEQUANT_ALL,
    "int8": bindings.DEQUANT_INT8,
    "int16": bindings.DEQUANT_INT16,
}


def set_decoding(context: int | None, mode: str) -> None:
    """How this context decodes from now on, a mode of `Session.set_dequant`: "auto" and "int8" compute products of few rows
    with a kernel of our own where there is one (AVX-512 VNNI; Q4_1, Q5_0, Q5_1); all others leave them to llama.cpp."""
    lib.context_set_dequant(context, DEQUANT_MODES[mode])
