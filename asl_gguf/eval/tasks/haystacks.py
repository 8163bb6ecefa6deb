"""Haystacks, the text that hides the facts, and how the facts get into them.

A haystack is an endless sequence of units. Each unit, and each fact, begins with what separates it
from the text before it, so joining them gives the context.
"""

from __future__ import annotations

import bisect
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from ..demo_text import sentences
from .files import read_text

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The noise of Landmark attention's pass-key task (arXiv 2305.16300), of RULER and of InfiniteBench."""

HAYSTACK = "a text file for a haystack"

_LONGEST_UNIT = 120
"""characters of a sentence after which it is split at the next word"""

Fact = tuple[float, str]
"""How deep a fact stands, as a share of the haystack in characters (0 first, 1 last), and the fact."""


def noise() -> Iterator[str]:
    """Lines of noise, as in RULER."""
    return itertools.repeat("\n" + NOISE)


def prose(source: str | None, rng: random.Random) -> Iterator[str]:
    """Sentences of a text file from its start, over and over; of our own prose, other for each example, if it is None.

    Raises:
        OptionError: the file cannot be read, or holds no text.
    """
    return sentences(rng) if source is None else itertools.cycle(file_units(source))


def file_units(path: str) -> list[str]:
    """The sentences of a text file, each with the white space that goes before it; long ones in parts."""
    words = re.findall(r"\s*\S+", " " + read_text(path).strip())
    units = [""]
    for word in words:
        units[-1] += word
        if word[-1] in ".!?" or len(units[-1]) > _LONGEST_UNIT:
            units.append("")
    return units if units[-1] else units[:-1]


def spread(depth: float, n: int) -> list[float]:
    """n depths at equal distances round the haystack, of which the first is `depth`."""
    return [(depth + i / n) % 1.0 for i in range(n)]


def place(units: Sequence[str], facts: Sequence[Fact]) -> list[str]:
    """The units with each fact at the boundary closest to its depth, the facts in the order of their depths."""
    ends = list(itertools.accumulate(map(len, units), initial=0))
    middles = [end - len(unit) / 2 for unit, end in zip(units, ends[1:])]
    placed = list(units)
    for depth, fact in sorted(facts, key=lambda fact: fact[0])[::-1]:  # the last one first
        placed.insert(bisect.bisect_right(middles, depth * ends[-1]), fact)
    return placed


def context_maker(haystack: Iterator[str], facts: Sequence[Fact]) -> Callable[[int], str]:
    """A function that gives the context with the first n units of the haystack and all facts."""
    units: list[str] = []

    def context_of(n_units: int) -> str:
        units.extend(itertools.islice(haystack, max(0, n_units - len(units))))
        return "".join(place(units[:n_units], facts)).strip(" \n,")

    return context_of
