"""InfiniteBench's generated tasks that need more than one line of the text: a list, a program, a JSON object.

Math.Find, Code.Run and Retrieve.KV (arXiv 2402.13718; wording as in its public evaluator, src/prompt.py, scoring as
in src/compute_scores.py). How its numbers and functions were drawn is not in the paper: here the numbers differ from
each other, so that each question has one answer, and the functions are named by five digits. passkey.py has the
remaining two, keyvalue.py a form of Retrieve.KV that small models follow.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from .base import Draft, Example, Task
from .haystacks import Fact, context_maker, spread
from .keyvalue import written
from .scoring import first_number, last_integer, words_of
from .words import below, numbers, pick, shuffled, uuids

_SMALLEST, _LOW, _HIGH, _LARGEST = 100_000, 110_000, 990_000, 1_000_000
_WANTED = (
    "smallest number",
    "second smallest number",
    "third smallest number",
    "median",
    "third largest number",
    "second largest number",
    "largest number",
)
_MIDDLE, _MIDDLE_RANGE = 500_000, 100_000


class MathFind(Task):
    """One of the three smallest, the three largest and the median of a list of numbers of six digits.

    One number below the median and one above it are one unit of the haystack.
    """

    name = "math_find"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        median = _MIDDLE + below(rng, _MIDDLE_RANGE)
        low = sorted(islice(_integers(rng, _SMALLEST, _LOW), 3))
        high = sorted(islice(_integers(rng, _HIGH, _LARGEST), 3))
        asked, *others = shuffled(rng, list(zip(_WANTED, [*low, median, *high])))
        first, *depths = spread(depth, len(_WANTED))
        facts: list[Fact] = [(first, f", {asked[1]}"), *((at, f", {n}") for at, (_, n) in zip(depths, others))]
        pairs = zip(_integers(rng, _LOW, median), _integers(rng, median + 1, _HIGH))
        units = (", {}, {}".format(*(pair if rng.random() < 0.5 else pair[::-1])) for pair in pairs)
        context_of = context_maker(units, facts)
        question = f"You should answer with only one number, no other words. What is the {asked[0]} of the list?"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(
                f"What is the {asked[0]} in the following list?\n\n[{context_of(n)}]\n\n{question}",
                f"The {asked[0]} of the list is:",
            ),
            question=question,
            references=(str(asked[1]),),
            reference_text=f" {asked[1]}",
            max_new_tokens=12,
            depths=(depth,),
        )

    def evaluate(self, example: Example, completion: str) -> float:
        return float(first_number(completion) == example.references[0])


class CodeRun(Task):
    """The value of a call through two to ten functions, each of which adds or subtracts; one function is one unit."""

    name = "code_run"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        names = (f"func_{number}" for number in numbers(rng, 5))
        chain = list(islice(names, 2 + below(rng, 9)))
        steps = [0]
        while sum(steps) == 0:  # the answer must not be the argument
            steps = [_step(rng) for _ in chain]
        depths = spread(depth, len(chain))
        callees = [*(f"{name}(x)" for name in chain[1:]), "x"]
        functions = (_function(*parts) for parts in zip(chain, callees, steps))
        facts: list[Fact] = list(zip(depths, functions))
        context_of = context_maker(_functions(rng, names), facts)
        call, value = "", ""
        while not call or value in call:  # the answer must not stand in the question
            argument = 200 + below(rng, 800)
            call, value = f"{chain[0]}({argument})", str(argument + sum(steps))
        question = f"Please compute the exact value of {call}."
        intro = f"Following is a set of Python functions. There is a function called named {chain[0]}."
        return Draft(
            prompt_of=lambda n: self.chat.prompt(
                f"{intro}\n\n{context_of(n)}\n\n{question}", f"The value of {call} is"
            ),
            question=question,
            references=(value,),
            reference_text=f" {value}",
            max_new_tokens=8,
            depths=tuple(depths),
        )

    def evaluate(self, example: Example, completion: str) -> float:
        return float(last_integer(completion) == example.references[0])


class KvRetrieval(Task):
    """The value of a key in a JSON object of UUIDs, asked for in the chat format; one pair is one unit."""

    name = "kv_retrieval"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        source = uuids(rng)
        pairs = zip(source, source)
        key, value = next(pairs)
        context_of = context_maker((", " + written(pair) for pair in pairs), [(depth, ", " + written((key, value)))])
        question = f'Key: "{key}"'
        intro = "Extract the value corresponding to the specified key in the JSON object below."
        prefix = "The value associated with the specified key is:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{intro}\n\n{{{context_of(n)}}}\n\n{question}", prefix),
            question=question,
            references=(value,),
            reference_text=f" {value}",
            max_new_tokens=45,
            depths=(depth,),
        )

    def evaluate(self, example: Example, completion: str) -> float:
        return float(example.references[0] in words_of(completion))


def _integers(rng: random.Random, begin: int, end: int) -> Iterator[int]:
    """Integers of [begin, end), none of them twice."""
    seen: set[int] = set()
    while True:
        number = begin + below(rng, end - begin)
        if number not in seen:
            seen.add(number)
            yield number


def _step(rng: random.Random) -> int:
    """What a function adds."""
    return (1 + below(rng, 17)) * (1 if rng.random() < 0.5 else -1)


def _function(name: str, callee: str, step: int) -> str:
    return f"\n\ndef {name}(x):\n    return {callee} {'+' if step > 0 else '-'} {abs(step)}"


def _functions(rng: random.Random, names: Iterator[str]) -> Iterator[str]:
    """Functions that are not asked for; half of them call an earlier one of these."""
    known: list[str] = []
    for name in names:
        callee = f"{pick(rng, known)}(x)" if known and rng.random() < 0.5 else "x"
        yield _function(name, callee, _step(rng))
        known.append(name)
