"""Code, tables and records: look-ups in text with a form of its own.

Ours, in `shot` form like multikey: the context, two answers to questions about other entries, then the one asked for up
to its answer. No chat format. One definition, row or record is one unit.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from .base import Draft, Task
from .haystacks import Fact, context_maker, spread
from .words import below, keys, numbers, pick, shuffled

_Entry = tuple[str, str]
"""how it stands in the context, with what separates it from the one before; the question up to its answer, and the answer,
with a tab between them"""

_TOWNS = (
    *("Wrenmouth", "Saltcombe", "Fennwick", "Ostrand", "Greyhithe", "Dunmarrow", "Kettlebay", "Aldersby"),
    *("Hollowmere", "Stonebridge", "Larkfield", "Northgate"),
)


class LookUp(Task):
    """Entries of one form; of some, a question has one answer."""

    n_shots: ClassVar[int] = 2
    n_askable: ClassVar[int | None] = None
    """how many can be asked about, the rest is filler; None: all can"""
    head: ClassVar[str] = ""
    tail: ClassVar[str] = ""

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        entries = self._entries(rng)
        asked = list(islice(entries, self.n_askable or 1 + self.n_shots))
        _, *others = spread(depth, len(asked))
        facts: list[Fact] = [(where, entry[0]) for where, entry in zip([depth, *shuffled(rng, others)], asked)]
        context_of = context_maker((entry[0] for entry in self._filler(rng, entries)), facts)
        (question, answer), *shots = (tuple(entry[1].split("\t")) for entry in asked[: 1 + self.n_shots])
        shown = "".join(f"{one}{its}\n" for one, its in shots)
        return Draft(
            prompt_of=lambda n: f"{self.head}{context_of(n)}{self.tail}\n\n{shown}{question}",
            question=question,
            references=(answer.strip(),),
            reference_text=answer,
            max_new_tokens=14,
            depths=(depth,),
        )

    def _filler(self, rng: random.Random, entries: Iterator[_Entry]) -> Iterator[_Entry]:
        return entries

    @abstractmethod
    def _entries(self, rng: random.Random) -> Iterator[_Entry]:
        """Endless entries; no question comes twice."""


class FunctionResult(LookUp):
    """What a function of a Python module returns."""

    name = "function"

    def _entries(self, rng: random.Random) -> Iterator[_Entry]:
        return _functions(rng)


class Identifier(LookUp):
    """The value of a constant that is defined far away, among functions."""

    name = "identifier"
    n_askable = 4

    def _entries(self, rng: random.Random) -> Iterator[_Entry]:
        for key, value in zip(keys(rng), numbers(rng, 5)):
            name = key.replace("-", "_").upper()
            yield f"\n\n{name} = {value}", f"# {name} is\t {value}"

    def _filler(self, rng: random.Random, entries: Iterator[_Entry]) -> Iterator[_Entry]:
        return _functions(rng)


class Table(LookUp):
    """A cell of a Markdown table."""

    name = "table"
    head = "| article | town | stock | price |\n|---|---|---|---|\n"

    def _entries(self, rng: random.Random) -> Iterator[_Entry]:
        for key, price in zip(keys(rng), numbers(rng, 4)):
            row = f"\n| {key} | {pick(rng, _TOWNS)} | {10 + below(rng, 90)} | {price} |"
            yield row, f"The price of {key} is\t {price}"


class Records(LookUp):
    """A field of a record in JSON; other records may have the same value there."""

    name = "records"
    head, tail = "[", "]"

    def _entries(self, rng: random.Random) -> Iterator[_Entry]:
        for key, number in zip(keys(rng), numbers(rng, 5)):
            town = pick(rng, _TOWNS)
            record = f'{{"id": {number}, "owner": "{key}", "town": "{town}", "open": {pick(rng, ("true", "false"))}}}'
            yield f",\n {record}", f"The town of {key} is\t {town}"


def _functions(rng: random.Random) -> Iterator[_Entry]:
    """Endless functions of different names."""
    for key in keys(rng):
        body = f"x * {2 + below(rng, 97)} + {2 + below(rng, 97)}"
        name = key.replace("-", "_")
        yield f"\n\ndef {name}(x):\n    return {body}", f"# {name}(x) returns\t {body}"
