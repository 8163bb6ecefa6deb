"""Needles in a haystack: numbers to be found by their keys.

RULER's retrieval tasks (arXiv 2404.06654; needle, question and answer prefix as in its public generator,
scripts/data/synthetic/niah.py), with our own haystack of prose in the place of the essays, or a text file of
the user's (`niah_prose:FILE`). The answer prefix ends with a colon, as the needle does: the number follows after a space.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from .base import Draft, Task
from .haystacks import HAYSTACK, Fact, context_maker, noise, prose, spread
from .words import keys, numbers, shuffled

N_DIGITS = 7
_INTRO_ONE = (
    "A special magic number is hidden within the following text. "
    "Make sure to memorize it. I will quiz you about the number afterwards."
)
_INTRO_SEVERAL = (
    "Some special magic numbers are hidden within the following text. "
    "Make sure to memorize it. I will quiz you about the numbers afterwards."
)


class SingleNeedle(Task):
    """One needle, asked for in the chat format."""

    separator: ClassVar[str]

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        key, number = next(keys(rng)), next(numbers(rng, N_DIGITS))
        context_of = context_maker(self._haystack(rng), [(depth, self.separator + needle(key, number))])
        question = f"What is the special magic number for {key} mentioned in the provided text?"
        prefix = f"The special magic number for {key} mentioned in the provided text is:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{_INTRO_ONE}\n{context_of(n)}\n{question}", prefix),
            question=question,
            references=(number,),
            reference_text=f" {number}",
            max_new_tokens=16,
            depths=(depth,),
        )

    @abstractmethod
    def _haystack(self, rng: random.Random) -> Iterator[str]: ...


class NoiseNeedle(SingleNeedle):
    """RULER's niah_single_1: the needle in repeated noise."""

    name = "niah_noise"
    separator = "\n"

    def _haystack(self, rng: random.Random) -> Iterator[str]:
        return noise()


class ProseNeedle(SingleNeedle):
    """As RULER's niah_single_2, the needle in prose, other for each example."""

    name = "niah_prose"
    source_is = HAYSTACK
    separator = " "

    def _haystack(self, rng: random.Random) -> Iterator[str]:
        return prose(self.source, rng)


class MultiKey(Task):
    """As RULER's niah_multikey_1: needles of different keys in prose, one asked for.

    In `shot` form, which small and base models follow: the context, two of the other needles once
    more, then the needle asked for up to its number. No chat format.
    """

    name = "multikey"
    source_is = HAYSTACK
    n_needles: ClassVar[int] = 6
    n_shots: ClassVar[int] = 2

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        pairs = list(islice(zip(keys(rng), numbers(rng, N_DIGITS)), self.n_needles))
        _, *others = spread(depth, self.n_needles)
        facts: list[Fact] = [
            (where, " " + needle(*pair)) for where, pair in zip([depth, *shuffled(rng, others)], pairs)
        ]
        context_of = context_maker(prose(self.source, rng), facts)
        (key, number), *other_pairs = pairs
        shots = "".join(needle(*pair) + "\n" for pair in other_pairs[: self.n_shots])
        question = needle_start(key)
        return Draft(
            prompt_of=lambda n: f"{context_of(n)}\n\n{shots}{question}",
            question=question,
            references=(number,),
            reference_text=f" {number}",
            max_new_tokens=12,  # too few to go on to another number
            depths=(depth,),
        )


class MultiValue(Task):
    """RULER's niah_multivalue: several numbers for one key in prose, all asked for."""

    name = "multivalue"
    source_is = HAYSTACK
    n_values: ClassVar[int] = 4

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        key = next(keys(rng))
        values = tuple(islice(numbers(rng, N_DIGITS), self.n_values))
        depths = sorted(spread(depth, self.n_values))
        facts = [(where, " " + needle(key, value)) for where, value in zip(depths, values)]
        context_of = context_maker(prose(self.source, rng), facts)
        question = f"What are all the special magic numbers for {key} mentioned in the provided text?"
        prefix = f"The special magic numbers for {key} mentioned in the provided text are:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{_INTRO_SEVERAL}\n{context_of(n)}\n{question}", prefix),
            question=question,
            references=values,
            reference_text=f" {', '.join(values[:-1])}, and {values[-1]}",
            max_new_tokens=64,
            depths=tuple(depths),
        )


def needle(key: str, value: str, kind: str = "number") -> str:
    """RULER's needle. kind: what the value is called."""
    return f"{needle_start(key, kind)} {value}."


def needle_start(key: str, kind: str = "number") -> str:
    """RULER's needle up to its value."""
    return f"One of the special magic {kind}s for {key} is:"
