"""Facts in prose that have to be put together, a rule that stands once at the top, and what was said earlier in a chat.

Ours, in our own prose (or a text file, as in needles.py). One sentence is one unit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .base import Draft, Task
from .haystacks import HAYSTACK, Fact, context_maker, prose, spread
from .words import ADJECTIVES, NOUNS, below, pick, shuffled

_NAMES = tuple(
    """
    Agatha Barnaby Clement Dorothea Edmund Felicity Gilbert Henrietta Ignatius Josephine Konrad Leopold Mathilda
    Nathaniel Ottilie Percival Rosalind Sebastian Theodora Valentin
    """.split()
)
_GOODS = (
    "barrels of cider",
    "baskets of apples",
    "boxes of candles",
    "sacks of oats",
    "crates of plums",
    "jars of honey",
)
_ACTS = (
    *("board the ferry", "borrow the rowing boat", "enter the cellar", "ring the great bell", "cross the drawbridge"),
    *("open the archive", "feed the hounds", "climb the watchtower", "see the map room", "use the printing press"),
)
_OWNED = ("dog", "sister", "horse", "neighbour", "boat", "grandfather", "parrot", "teacher")
_INTRO = "Read the following text. I will ask about it."


class Compare(Task):
    """Two facts of one kind, and which of them is more."""

    name = "compare"
    source_is = HAYSTACK

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        (one, other), goods = shuffled(rng, _NAMES)[:2], pick(rng, _GOODS)
        few = 100 + below(rng, 400)
        numbers = shuffled(rng, [few, few + 50 + below(rng, 400)])
        depths = sorted(spread(depth, 2))
        facts = [(where, f" {name} owns {n} {goods}.") for where, name, n in zip(depths, (one, other), numbers)]
        context_of = context_maker(prose(self.source, rng), facts)
        question = f"How many {goods} does {one} own, how many does {other} own, and who owns more?"
        more = one if numbers[0] > numbers[1] else other
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{_INTRO}\n\n{context_of(n)}\n\n{question}", f"{one} owns"),
            question=question,
            references=(str(numbers[0]), str(numbers[1]), f"{more} owns more"),
            reference_text=f" {numbers[0]} {goods}, {other} owns {numbers[1]} {goods}, and {more} owns more",
            max_new_tokens=48,
            depths=tuple(depths),
        )


class Sum(Task):
    """Three numbers of three statements, and their sum."""

    name = "sum"
    source_is = HAYSTACK
    n_terms = 3

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        people, goods = shuffled(rng, _NAMES)[: self.n_terms], pick(rng, _GOODS)
        terms = shuffled(rng, range(11, 99))[: self.n_terms]
        depths = sorted(spread(depth, self.n_terms))
        facts = [(where, f" {name} sold {n} {goods}.") for where, name, n in zip(depths, people, terms)]
        context_of = context_maker(prose(self.source, rng), facts)
        who = f"{', '.join(people[:-1])} and {people[-1]}"
        question = f"How many {goods} did {who} sell together? Write it as a sum, such as 1 + 2 + 3 = 6."
        added = " + ".join(map(str, terms))
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{_INTRO}\n\n{context_of(n)}\n\n{question}", f"{who} sold"),
            question=question,
            references=(*map(str, terms), f"= {sum(terms)}"),
            reference_text=f" {added} = {sum(terms)}",
            max_new_tokens=32,
            depths=tuple(depths),
        )


class Rule(Task):
    """A rule at the very top, applied at the end."""

    name = "rule"
    source_is = HAYSTACK

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        act, words = pick(rng, _ACTS), f"{pick(rng, ADJECTIVES)} {pick(rng, NOUNS)}"
        stated = f'A rule comes first: whoever wants to {act} must say the words "{words}".'
        context_of = context_maker(prose(self.source, rng), [])
        question = f"A stranger wants to {act}. Which words must the stranger say?"
        prefix = 'By the rule, the stranger must say the words "'
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{_INTRO}\n\n{stated}\n\n{context_of(n)}\n\n{question}", prefix),
            question=question,
            references=(words,),
            reference_text=words,
            max_new_tokens=12,
            depths=(0.0,),
        )


class Turns(Task):
    """What was said in passing in earlier turns of a chat about something else. A text to go on with: no chat format."""

    name = "turns"
    source_is = HAYSTACK
    n_said = 3

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        owned, names = shuffled(rng, _OWNED)[: self.n_said], shuffled(rng, _NAMES)[: self.n_said]
        depths = spread(depth, self.n_said)
        facts: list[Fact] = [
            (where, f"\nUser: By the way, my {one} is called {name}.\nAssistant: I will remember that.")
            for where, one, name in zip(depths, owned, names)
        ]
        context_of = context_maker(_talk(prose(self.source, rng)), facts)
        question = f"User: What is my {owned[0]} called?"
        return Draft(
            prompt_of=lambda n: f"{context_of(n)}\n{question}\nAssistant: Your {owned[0]} is called",
            question=question,
            references=(names[0],),
            reference_text=f" {names[0]}",
            max_new_tokens=8,
            depths=(depths[0],),
        )


def _talk(sentences: Iterator[str]) -> Iterator[str]:
    """Turns of a chat, each a sentence or two of a text that the assistant tells."""
    for i, (asked, told) in enumerate(zip(sentences, sentences)):
        del asked  # half of the sentences are enough
        yield f"\nUser: {('Go on, please.', 'And then?', 'What comes next?')[i % 3]}\nAssistant: {told.strip()}"
