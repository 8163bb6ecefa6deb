"""Look-ups in a JSON object that fills the prompt.

Retrieve.KV of InfiniteBench (arXiv 2402.13718), whose keys and values are UUIDs; and the same with
words and numbers, which small models can do. In `shot` form, which small and base models follow: the
object, two of its other pairs once more, then the pair asked for up to its value. No chat format.
One pair is one unit of the haystack.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from .base import Draft, Task
from .haystacks import Fact, context_maker, spread
from .words import keys, numbers, shuffled, uuids

_Pair = tuple[str, str]


class JsonLookUp(Task):
    """Different keys with different values."""

    n_shots: ClassVar[int] = 2
    max_new_tokens: ClassVar[int]

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        pairs = self._pairs(rng)
        asked = list(islice(pairs, 1 + self.n_shots))
        _, *others = spread(depth, len(asked))
        facts: list[Fact] = [
            (where, ", " + written(pair)) for where, pair in zip([depth, *shuffled(rng, others)], asked)
        ]
        context_of = context_maker((", " + written(pair) for pair in pairs), facts)
        (key, value), *shot_pairs = asked
        shots = "".join(written(pair) + "\n" for pair in shot_pairs)
        question = f'"{key}": "'
        return Draft(
            prompt_of=lambda n: f"{{{context_of(n)}}}\n\n{shots}{question}",
            question=question,
            references=(value,),
            reference_text=value,
            max_new_tokens=self.max_new_tokens,
            depths=(depth,),
        )

    @abstractmethod
    def _pairs(self, rng: random.Random) -> Iterator[_Pair]:
        """Endless pairs; no key and no value comes twice."""


class KeyValue(JsonLookUp):
    """Two words for a number of seven digits."""

    name = "keyvalue"
    max_new_tokens = 12  # too few to go on to another value

    def _pairs(self, rng: random.Random) -> Iterator[_Pair]:
        return zip(keys(rng), numbers(rng, 7))


class UuidKeyValue(JsonLookUp):
    """A UUID for a UUID."""

    name = "uuid_kv"
    max_new_tokens = 40

    def _pairs(self, rng: random.Random) -> Iterator[_Pair]:
        source = uuids(rng)
        return zip(source, source)


def written(pair: tuple[str, str]) -> str:
    """A key and its value as JSON writes them."""
    return '"{}": "{}"'.format(*pair)
