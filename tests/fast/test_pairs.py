"""tests/pairs.py: what its cases leave out."""

from __future__ import annotations

from itertools import combinations, product

from pairs import all_pairs


def test_any_two_values_meet():
    axes = ("abcd", (1, 2, 3), (True, False), (None, 0))
    cases = all_pairs(*axes)
    assert len(cases) == len(set(cases)) <= 13 < len(list(product(*axes)))
    assert cases == all_pairs(*axes) and set(cases) <= set(product(*axes))
    for i, j in combinations(range(4), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(axes[i], axes[j]))


def test_two_arguments_are_all_their_combinations():
    assert all_pairs("ab", (1, 2, 3)) == list(product("ab", (1, 2, 3)))
