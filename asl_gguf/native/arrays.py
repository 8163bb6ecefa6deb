"""Arrays that cross into the library: checked where a wrong one would be read as another, and as pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from ..errors import OptionError
from ..policies.contract import Indices


def indices(name: str, values: Sequence[int] | Indices, dimensions: tuple[int, ...]) -> Indices:
    """values as a contiguous int32 array, refused where that would change them."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as err:
        raise OptionError(f"{name}: expected integers, got {values!r:.80}") from err
    if array.ndim not in dimensions or (array.size and array.dtype.kind not in "iu"):
        shapes = " or ".join(f"{n}-dimensional" for n in dimensions)
        raise OptionError(
            f"{name}: expected a {shapes} array of integers, got shape {list(array.shape)} of {array.dtype}"
        )
    if array.size and not (np.iinfo(np.int32).min <= array.min() and array.max() <= np.iinfo(np.int32).max):
        raise OptionError(f"{name}: expected 32-bit integers, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def require_int32(name: str, value: int) -> None:
    if not np.iinfo(np.int32).min <= value <= np.iinfo(np.int32).max:
        raise OptionError(f"{name}: expected a number of tokens, got {value}")


def int32_p(array: np.ndarray) -> ctypes._Pointer[ctypes.c_int32]:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


def float_p(array: np.ndarray) -> ctypes._Pointer[ctypes.c_float]:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
