"""What the tasks draw: seeded generators, and endless different keys, numbers and UUIDs.

Only `random.Random.random()` draws, the one method whose sequence Python promises to keep between
versions, and seeds come from SHA-256: one seed gives the same text on every machine.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")

ADJECTIVES = tuple(
    """
    amber ancient ashen austere azure bashful blunt brave brazen brisk brittle bronze calm careful cheerful chilly
    civic clumsy cobalt copper coral crimson crisp curious dapper daring dusty eager earnest elegant emerald faded
    famous fearless festive fierce floral foggy fragile frosty gentle gilded glossy golden graceful grumpy hasty
    hazel hidden hollow humble indigo ivory jolly lively lofty lonely loyal lucid lunar mellow merry mighty modest
    narrow nimble noble olive opaque patient plain pleasant polite proud purple quaint quick quiet rapid rustic
    scarlet secret serene shallow silent silver sleepy slender solemn spicy stormy sturdy sunny tender tidy velvet
    vivid wandering
    """.split()
)
NOUNS = tuple(
    """
    acorn almanac anvil apron atlas badge balcony banjo basket beacon bellows bicycle blanket bonnet bottle bracelet
    bridge bucket button cabinet candle canyon carpet castle cedar chapel cheese chimney cinema clarinet compass
    cottage cradle crayon crystal curtain diary drawer easel engine envelope feather fiddle forest fountain galaxy
    garden glacier goblet granite guitar hammer harbour helmet hinge island jacket jungle kettle kitten ladder
    lantern lemon library locket magnet marble meadow mirror mitten museum needle orchard oven parcel pebble pepper
    piano pillow planet pocket pumpkin quilt ribbon saddle saffron sandal spoon statue teapot temple thistle
    trumpet tunnel umbrella valley violin wagon walnut window
    """.split()
)


def seeded(*parts: object) -> random.Random:
    """A generator for these parts, the same in every process: nothing rests on hash()."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def below(rng: random.Random, n: int) -> int:
    """One of 0, ..., n - 1."""
    return int(rng.random() * n)


def pick(rng: random.Random, items: Sequence[_T]) -> _T:
    """One of the items."""
    return items[below(rng, len(items))]


def shuffled(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    """The items in another order."""
    left = list(items)
    return [left.pop(below(rng, len(left))) for _ in items]


def keys(rng: random.Random) -> Iterator[str]:
    """Endless different keys: "adjective-noun", and with more adjectives when half of those are used."""
    n_adjectives, n_drawn, n_possible = 1, 0, len(ADJECTIVES) * len(NOUNS)

    def draw() -> str:
        return "-".join([*(pick(rng, ADJECTIVES) for _ in range(n_adjectives)), pick(rng, NOUNS)])

    for key in _different(draw):
        yield key
        n_drawn += 1
        if 2 * n_drawn > n_possible:
            n_adjectives, n_drawn, n_possible = n_adjectives + 1, 0, n_possible * len(ADJECTIVES)


def numbers(rng: random.Random, n_digits: int) -> Iterator[str]:
    """Endless different numbers of n_digits digits, the first one not 0."""
    smallest = 10 ** (n_digits - 1)
    return _different(lambda: str(smallest + below(rng, 9 * smallest)))


def uuids(rng: random.Random) -> Iterator[str]:
    """Endless different UUIDs of version 4."""
    return _different(lambda: str(uuid.UUID(int=sum(below(rng, 2**32) << 32 * i for i in range(4)), version=4)))


def names(rng: random.Random, n_letters: int) -> Iterator[str]:
    """Endless different strings of n_letters capital letters."""
    return _different(lambda: "".join(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(n_letters)))


def _different(draw: Callable[[], str]) -> Iterator[str]:
    """What `draw` gives, without repetitions."""
    seen: set[str] = set()
    while True:
        drawn = draw()
        if drawn not in seen:
            seen.add(drawn)
            yield drawn
