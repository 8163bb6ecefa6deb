"""RULER's retrieval tasks by their own definitions, and the needle at a chosen depth.

RULER (arXiv 2404.06654; public generator scripts/data/synthetic/niah.py, settings in scripts/synthetic.yaml):
kinds of keys and values, numbers of keys and queries, and the haystack are its; keys of words are our own, and so
is the prose that stands for the essays where no file is given. needles.py has the remaining ones of its eight, and
forms of its tasks that small models follow.

The grid of depths is that of "Needle in a Haystack" (github.com/gkamradt/LLMTest_NeedleInAHaystack), with RULER's
needle and question, whose answer a program can check.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar

from .base import Draft, Task
from .haystacks import HAYSTACK, Fact, context_maker, noise, prose, spread
from .needles import N_DIGITS, needle
from .words import keys, numbers, shuffled, uuids

NOISE_SOURCE = "noise"
_UUID_TOKENS = 40
_NUMBER_TOKENS = 16
_N_PERCENT = 101


class Needles(Task):
    """Needles of different keys, some of them asked for, in the chat format."""

    source_is: ClassVar[str | None] = HAYSTACK
    kind: ClassVar[str] = "number"
    """what a value is: number or uuid"""
    key_kind: ClassVar[str] = "words"
    n_keys: ClassVar[int] = 1
    n_asked: ClassVar[int] = 1
    separator: ClassVar[str] = " "

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        pairs = self._pairs(rng)
        own = list(islice(pairs, self.n_keys))
        _, *others = spread(depth, self.n_keys)
        depths = [depth, *shuffled(rng, others)]
        facts: list[Fact] = [(where, self._written(pair)) for where, pair in zip(depths, own)]
        context_of = context_maker(self._haystack(rng, pairs), facts)
        asked, values = zip(*own[: self.n_asked])
        several, queries = self.n_asked > 1, _listed(asked)
        wanted = f"special magic {self.kind}{'s' if several else ''}"
        intro = (
            f"{'Some' if several else 'A'} {wanted} {'are' if several else 'is'} hidden within the following text. "
            f"Make sure to memorize it. I will quiz you about the {wanted.rsplit(' ', 1)[1]} afterwards."
        )
        question = f"What {'are all' if several else 'is'} the {wanted} for {queries} mentioned in the provided text?"
        prefix = f"The {wanted} for {queries} mentioned in the provided text {'are' if several else 'is'}:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{intro}\n{context_of(n)}\n{question}", prefix),
            question=question,
            references=values,
            reference_text=f" {_listed(values)}",
            max_new_tokens=self.n_asked * (_UUID_TOKENS if self.kind == "uuid" else _NUMBER_TOKENS),
            depths=tuple(depths[: self.n_asked]),
        )

    def _haystack(self, rng: random.Random, pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
        return prose(self.source, rng)

    def _pairs(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Endless pairs of a key and a value; none comes twice."""
        source = uuids(rng)
        return zip(
            source if self.key_kind == "uuids" else keys(rng),
            source if self.kind == "uuid" else numbers(rng, N_DIGITS),
        )

    def _written(self, pair: tuple[str, str]) -> str:
        return self.separator + needle(*pair, self.kind)


class UuidNeedle(Needles):
    """niah_single_3: a UUID for two words, in prose."""

    name = "niah_single_3"
    kind = "uuid"


class FourKeys(Needles):
    """niah_multikey_1: four needles in prose, one asked for."""

    name = "niah_multikey_1"
    n_keys = 4


class FourQueries(Needles):
    """niah_multiquery: four needles in prose, all asked for."""

    name = "niah_multiquery"
    n_keys = n_asked = 4


class NeedlesOnly(Needles):
    """niah_multikey_2: nothing but needles, one on each line."""

    name = "niah_multikey_2"
    source_is = None
    separator = "\n"

    def _haystack(self, rng: random.Random, pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
        return map(self._written, pairs)


class UuidNeedlesOnly(NeedlesOnly):
    """niah_multikey_3: nothing but needles, whose keys and values are UUIDs."""

    name = "niah_multikey_3"
    kind = "uuid"
    key_kind = "uuids"


class Niah(Needles):
    """One needle at each of some depths. Its source is a text file, or `noise`.

    Example 101 * r + p has its needle at p percent of the haystack, for the r-th time. num_examples counts the
    examples of each depth.
    """

    name = "niah"
    source_is = "a text file for a haystack, or `noise`"

    @property
    def _n_indices(self) -> int:
        return _N_PERCENT * self.num_examples

    def indices(self, depths: Sequence[int]) -> Sequence[int]:
        return [_N_PERCENT * turn + percent for turn in range(self.num_examples) for percent in depths]

    def _depth(self, index: int) -> float:
        return index % _N_PERCENT / 100

    def _haystack(self, rng: random.Random, pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
        return noise() if self.source == NOISE_SOURCE else prose(self.source, rng)

    def _written(self, pair: tuple[str, str]) -> str:
        return ("\n" if self.source == NOISE_SOURCE else " ") + needle(*pair)


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
