"""Short runs: each value of each argument in few cases."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from cases import covering, shortened

axes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(axes, st.randoms(use_true_random=False))
def test_each_value_stays(sizes, rng):
    """Of a product, or of a part of one."""
    whole = [tuple(enumerate(case)) for case in product(*map(range, sizes))]
    cases = rng.sample(whole, rng.randint(1, len(whole)))
    chosen = covering(cases)
    assert chosen == sorted(set(chosen)) and chosen == covering(cases)
    assert {value for i in chosen for value in cases[i]} == {value for case in cases for value in case}


@given(axes)
def test_a_product_takes_as_many_cases_as_its_longest_axis_has_values(sizes):
    assert len(covering([tuple(enumerate(case)) for case in product(*map(range, sizes))])) == max(sizes)


def test_a_list_of_cases_stays():
    assert covering([(("case", i),) for i in range(5)]) == [0, 1, 2, 3, 4]


def test_a_long_axis_meets_all_values_of_a_short_one_as_often():
    cases = [(("way", way), ("kind", kind)) for way in range(12) for kind in range(3)]
    kinds = [cases[i][1][1] for i in covering(cases)]
    assert sorted(kinds) == [0] * 4 + [1] * 4 + [2] * 4


def test_what_is_long_is_left_out():
    items = [SimpleNamespace(get_closest_marker={"long": long}.get) for long in (None, True, None)]
    assert shortened(items) == ([items[0], items[2]], [items[1]])
