"""Variable tracking: which variables have the value, by a chain of assignments.

RULER's task of that name (arXiv 2404.06654; wording as in its public generator,
scripts/data/synthetic/variable_tracking.py, with "assigned" spelt right), one chain in noise. As there,
a worked example of the same number of hops stands before the text.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from ...errors import OptionError
from .base import PLAIN, Draft, Task
from .haystacks import context_maker, noise, spread
from .words import names, numbers


@dataclasses.dataclass(frozen=True)
class VariableTracking(Task):
    """hops: assignments after the first, so there are hops + 1 variables to find.

    The worked example makes it a text to go on with: like the `shot` forms, it does not use `chat`. One hop is what
    models of 100M parameters solve at times; RULER's default is 4.
    """

    name: ClassVar[str] = "tracking"
    n_letters: ClassVar[int] = 5
    n_letters_worked: ClassVar[int] = 3
    n_lines_worked: ClassVar[int] = 3

    hops: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hops < 1:
            raise OptionError(f"expected hops >= 1, got {self.hops}; choose a larger hops")

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        n = self.hops + 1
        worked_value, value = islice(numbers(rng, 5), 2)
        worked_variables = tuple(islice(names(rng, self.n_letters_worked), n))
        variables = tuple(islice(names(rng, self.n_letters), n))
        worked_context = context_maker(
            noise(), _chain(worked_variables, worked_value, [(i + 0.5) / n for i in range(n)])
        )
        worked = (
            f"{_text_and_question(worked_context(self.n_lines_worked), worked_value)} "
            f"{_answer_prefix(n, worked_value)}{_listed(worked_variables)}\n\n"
        )
        depths = sorted(spread(depth, n))
        context_of = context_maker(noise(), _chain(variables, value, depths))
        return Draft(
            prompt_of=lambda n_lines: PLAIN.prompt(
                worked + _text_and_question(context_of(n_lines), value), _answer_prefix(n, value)
            ),
            question=_question(value),
            references=variables,
            reference_text=_listed(variables),
            max_new_tokens=8 * n,
            depths=tuple(depths),
        )


@dataclasses.dataclass(frozen=True)
class RulerTracking(VariableTracking):
    """vt: four hops, as RULER has it."""

    name: ClassVar[str] = "vt"
    hops: int = 4


def _chain(variables: Sequence[str], value: str, depths: Sequence[float]) -> list[tuple[float, str]]:
    """One assignment per variable, each on a line of its own: the value first, then the variable before."""
    sources = [value, *(f"VAR {variable}" for variable in variables)]
    return [(depth, f"\nVAR {variable} = {source}") for depth, variable, source in zip(depths, variables, sources)]


def _text_and_question(context: str, value: str) -> str:
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        f"{context}\n{_question(value)}"
    )


def _question(value: str) -> str:
    return f"Question: Find all variables that are assigned the value {value} in the text above."


def _answer_prefix(n_variables: int, value: str) -> str:
    return (
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{n_variables} variables are assigned the value {value}, they are:"
    )


def _listed(variables: Sequence[str]) -> str:
    return "".join(f" {variable}" for variable in variables)
