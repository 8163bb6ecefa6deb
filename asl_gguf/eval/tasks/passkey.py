"""Digits said twice in noise: the pass key and the number string.

Retrieve.PassKey and Retrieve.Number of InfiniteBench (arXiv 2402.13718; wording as in its public
generator, data/construct_synthetic_dataset.py). The pass key comes from Landmark attention (arXiv
2305.16300). One line of noise is one unit of the haystack; the digits have a line of their own.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import ClassVar

from .base import Draft, Task
from .haystacks import context_maker, noise
from .words import below, numbers


class DigitsInNoise(Task):
    """Digits in one line of the noise, asked for in the chat format."""

    wanted: ClassVar[str]
    """what the text calls the digits"""
    find_it: ClassVar[str]

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        digits = self._digits(rng)
        line = f"\nThe {self.wanted} is {digits}. Remember it. {digits} is the {self.wanted}."
        context_of = context_maker(noise(), [(depth, line)])
        intro = (
            f"There is an important info hidden inside a lot of irrelevant text. {self.find_it} "
            f"I will quiz you about the important information there."
        )
        question = f"What is the {self.wanted}?"
        prefix = f"The {self.wanted} mentioned in the provided text is:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{intro}\n{context_of(n)}\n{question}", prefix),
            question=question,
            references=(digits,),
            reference_text=f" {digits}",
            max_new_tokens=16,
            depths=(depth,),
        )

    @abstractmethod
    def _digits(self, rng: random.Random) -> str: ...


class PassKey(DigitsInNoise):
    """A number of five digits."""

    name = "passkey"
    wanted = "pass key"
    find_it = "Find it and memorize them."

    def _digits(self, rng: random.Random) -> str:
        return next(numbers(rng, 5))


class NumberString(DigitsInNoise):
    """Ten digits with repetitions: five drawn, then five times one of those so far doubled."""

    name = "number_string"
    wanted = "sequence of digits"
    find_it = "Find it."

    def _digits(self, rng: random.Random) -> str:
        digits = [str(below(rng, 10)) for _ in range(5)]
        for _ in range(5):
            position = below(rng, len(digits))
            digits.insert(position, digits[position])
        return "".join(digits)
