"""K/V rows in fewer bytes: quantised for host memory, expanded to what the cache holds when they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OptionError

KINDS = ("q8_0",)
"""ggml types that rows may be packed in"""

_CACHE_TYPES = (0, 1, 30)
"""f32, f16 and bf16 as ggml counts them: what is packed"""
_AT_ONCE = 4096
"""rows that are converted at a time"""
_AS_IT_IS = "pass asl_full_kv=True, which keeps the rows as the cache has them"


class Packing:
    """Packs rows of all layers in one of KINDS.

    Args:
        kind: one of KINDS.
        type_k, type_v: ggml types of the cache.
        sizes: bytes of K and of V of a row in the cache, for each layer.

    Raises:
        OptionError: the cache's types are quantised already, or the rows are no whole blocks.
    """

    def __init__(self, kind: str, type_k: int, type_v: int, sizes: Sequence[tuple[int, int]]) -> None:
        import gguf  # takes as long as the rest of this package

        self._quants = gguf.quants
        self._type = gguf.GGMLQuantizationType[kind.upper()]
        for name, value in (("type_k", type_k), ("type_v", type_v)):
            if value not in _CACHE_TYPES:
                found = gguf.GGMLQuantizationType(value).name.lower()
                raise OptionError(
                    f"asl_full_kv: expected {name} of f32, f16 or bf16 to keep as {kind}, got {found}; {_AS_IT_IS}"
                )
        self._cached = (gguf.GGMLQuantizationType(type_k), gguf.GGMLQuantizationType(type_v))
        n_block, n_packed = gguf.GGML_QUANT_SIZES[self._type]
        n_k, n_v = (gguf.GGML_QUANT_SIZES[cached][1] for cached in self._cached)
        widths = [(k // n_k, v // n_v) for k, v in sizes]
        if odd := [pair for pair in widths if pair[0] % n_block or pair[1] % n_block]:
            raise OptionError(
                f"asl_full_kv: expected K and V of a layer in whole blocks of {n_block} for {kind}, got {odd[0][0]} and "
                f"{odd[0][1]} elements a token; {_AS_IT_IS}"
            )
        self._cached_k = [k for k, _ in sizes]
        self._packed_k = [k // n_block * n_packed for k, _ in widths]
        self.row_bytes = [(k + v) // n_block * n_packed for k, v in widths]
        """packed bytes of one token in each layer"""

    def pack(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a layer, uint8 [n, bytes in the cache] -> uint8 [n, packed bytes]."""
        return self._converted(rows, self._cached_k[layer], self._cached, (self._type, self._type))

    def unpack(self, layer: int, packed: np.ndarray) -> np.ndarray:
        """What `pack` returned, as the cache holds it; values are rounded."""
        return self._converted(packed, self._packed_k[layer], (self._type, self._type), self._cached)

    def _converted(self, rows: np.ndarray, at: int, old: Sequence[Any], new: Sequence[Any]) -> np.ndarray:
        """K, up to byte `at` of each row, and V from the old to the new types; not all at once, for F32 between takes more
        than both."""
        parts = [
            self._converted_part(rows[i : i + _AT_ONCE], at, old, new) for i in range(0, max(len(rows), 1), _AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _converted_part(self, rows: np.ndarray, at: int, old: Sequence[Any], new: Sequence[Any]) -> np.ndarray:
        parts = [
            self._quants.quantize(self._quants.dequantize(np.ascontiguousarray(part), before), after).view(np.uint8)
            for part, before, after in zip((rows[:, :at], rows[:, at:]), old, new)
            if part.shape[1]  # V may be a part of K
        ]
        return np.concatenate(parts, axis=1)
