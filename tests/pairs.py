"""Fewer cases than all combinations of several arguments: any two values of two arguments still meet in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations, product
from typing import Any

import pytest


def all_pairs(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations of one value of each axis, the same at each call: every two values of two axes are in one of them."""
    values = [list(axis) for axis in axes]
    cases = list(product(*(range(len(axis)) for axis in values)))
    left = {pair for case in cases for pair in _pairs(case)}
    chosen = []
    while left:
        best = max(cases, key=lambda case: len(left & _pairs(case)))
        left -= _pairs(best)
        chosen.append(best)
    return [tuple(axis[i] for axis, i in zip(values, case)) for case in sorted(chosen)]


def _pairs(case: tuple[int, ...]) -> set[Any]:
    return set(combinations(enumerate(case), 2))


def pairs(**axes: Iterable[Any]) -> Callable[[Any], Any]:
    """Parametrizes a test with `all_pairs` of its arguments."""

    def mark(test: Any) -> Any:
        # the second mark tells tests/cases.py that these are values of arguments, not a list of cases
        return pytest.mark.parametrize(", ".join(axes), all_pairs(*axes.values()))(pytest.mark.pairs(*axes)(test))

    return mark
