"""What a short run (`--short`, `make test-fast`) takes: enough to show each value of each argument once.

Two `parametrize` marks, or a mark and a fixture's parameters, make a product, and `pairs` a part of one. Of these a short
run takes few, and none of the tests that are marked `long`; `make test` takes all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import pytest

Value = tuple[str, Hashable]
"""an argument and what tells its values apart"""


def covering(cases: Sequence[Sequence[Value]]) -> list[int]:
    """Indices of few cases in which each value of all cases occurs; values as often as each other, where that is possible."""
    left, used, chosen = {value for case in cases for value in case}, Counter[Value](), set[int]()
    while left:
        best = max(
            (i for i in range(len(cases)) if i not in chosen),
            key=lambda i: (len(left.intersection(cases[i])), -sum(used[value] for value in cases[i])),
        )
        chosen.add(best)
        left -= set(cases[best])
        used.update(cases[best])
    return sorted(chosen)


def values_of(item: pytest.Function) -> list[Value]:
    """Entries of a list of cases that one mark gives to several arguments are values; of `pairs`, those of each argument."""
    params, pairs = item.callspec.params, item.get_closest_marker("pairs")
    given = (mark.args[0] for mark in item.iter_markers("parametrize"))
    lists = [tuple(map(str.strip, names.split(","))) if isinstance(names, str) else tuple(names) for names in given]
    lists = [names for names in lists if not pairs or names != pairs.args]
    alone = params.keys() - {name for names in lists for name in names}
    return [
        (", ".join(names), tuple(_key(params[name]) for name in names))
        for names in [*lists, *((name,) for name in sorted(alone))]
    ]


def _key(value: object) -> Hashable:
    """Equal for one value of an argument in two cases."""
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def shortened(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that a short run takes, in order, and those that it leaves out."""
    short = [item for item in items if not item.get_closest_marker("long")]
    by_function = defaultdict(list)
    for item in short:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            by_function[item.path, item.cls, item.originalname].append(item)
    taken = {id(one[i]) for one in by_function.values() for i in covering([values_of(item) for item in one])}
    cases = {id(item) for one in by_function.values() for item in one}
    kept = {id(item) for item in short} - (cases - taken)
    return [item for item in items if id(item) in kept], [item for item in items if id(item) not in kept]
