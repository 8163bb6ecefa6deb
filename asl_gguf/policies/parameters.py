"""Checks of policies' parameters."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from ..errors import OptionError, shown

_LARGEST = float(np.finfo(np.float64).max)


def scaled_layer(depth: float, n_layer: int) -> int:
    """The layer at this share of the depth; not the last, unless it is the only one."""
    return min(max(1, round(n_layer * depth)), n_layer - 1)


def require_int(value: object, name: str, at_least: int) -> None:
    """Raises OptionError unless value is an integer of at least at_least."""
    valid = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= at_least
    require(bool(valid), name, f"an integer of at least {at_least}", value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether value is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def require_share(value: object, name: str, *, one: bool = False) -> None:
    """Raises OptionError unless value is a number in [0, 1), or in [0, 1] if `one` is allowed."""
    valid = is_number(value) and 0 <= value <= 1
    require(valid and (one or value != 1), name, f"a share in [0, 1{']' if one else ')'}", value)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raises OptionError unless the condition holds."""
    if not condition:
        raise OptionError(f"{name}: expected {expected}, got {shown(value)}")
