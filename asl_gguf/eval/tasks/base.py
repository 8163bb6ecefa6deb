"""What a task is: a number of examples, each a prompt of a chosen length, and the score of a completion."""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...errors import OptionError
from ..demo_text import last_fit
from .words import seeded

_GOLDEN_RATIO = 0.6180339887498949


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The markers round the user's turn; empty ones give plain text.

    assistant_prefix: what ends the user's turn and begins the assistant's.
    """

    user_prefix: str
    assistant_prefix: str

    def prompt(self, user: str, reply: str) -> str:
        """The user's turn and the start of the reply; a space between the two where the marker brings none."""
        turn = f"{self.user_prefix}{user}{self.assistant_prefix}"
        return turn + ("" if turn[-1:].isspace() else " ") + reply


CHATML = ChatFormat("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
"""The format of SmolLM2 and Qwen, without a system turn."""
PLAIN = ChatFormat("", "")
"""For base models."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt and what a right answer holds.

    prompt: the whole text, to be tokenised with special tokens parsed; the answer comes next.
    question: the part of the prompt that asks.
    references: the answers; a perfect completion holds all.
    reference_text: what a perfect model writes after `prompt`, with the space that comes first.
    n_tokens: tokens of `prompt`, as the task's count_tokens counts.
    depths: how deep each reference stands in the context, as a share of the other text in characters.
    """

    task: str
    index: int
    prompt: str
    question: str
    references: tuple[str, ...]
    reference_text: str
    max_new_tokens: int
    n_tokens: int
    depths: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Draft:
    """An example before its length is known.

    prompt_of: the prompt with a number of haystack units.
    n_units: how many units there are; None: as many as are wanted.
    """

    prompt_of: Callable[[int], str]
    question: str
    references: tuple[str, ...]
    reference_text: str
    max_new_tokens: int
    depths: tuple[float, ...]
    n_units: int | None = None


@dataclasses.dataclass(frozen=True)
class Task(ABC):
    """A number of examples of one kind, length and seed.

    An example depends on the seed and its index alone: another n_tokens gives the same question with
    more or less haystack, another num_examples the same examples.

    count_tokens: number of tokens of a text, with the special tokens the caller wants to count.
    n_tokens: a prompt has at most this many tokens, and one more haystack unit would exceed it.
    chat: the format of the prompt. The tasks in `shot` form (see the classes) do not use it.
    source: the user's file that the text comes from, for the tasks that read one (see source_is).
    """

    name: ClassVar[str]
    source_is: ClassVar[str | None] = None
    """what `source` names; None: the task reads no file"""
    needs_source: ClassVar[bool] = False
    generates: ClassVar[bool] = True
    """False: a text to go on with, scored token by token; no completion is asked for"""

    count_tokens: Callable[[str], int]
    n_tokens: int
    num_examples: int
    seed: int
    chat: ChatFormat = CHATML
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.source_is is None:
            raise OptionError(f"expected {self.name} alone, got {self.name}:{self.source}; it reads no file")
        if self.source is None and self.needs_source:
            raise OptionError(f"expected {self.name}:FILE, {self.source_is}, got {self.name} alone; name the file")
        for option in ("n_tokens", "num_examples"):
            value = getattr(self, option)
            if value < 1:
                raise OptionError(f"expected {option} >= 1, got {value}; choose a larger {option}")

    @property
    def _n_indices(self) -> int:
        return self.num_examples

    def indices(self, depths: Sequence[int]) -> Sequence[int]:
        """Those that stand for num_examples examples; depths, in percent, are for the grid of `niah` alone."""
        return range(self.num_examples)

    def get_example(self, index: int) -> Example:
        """Example number `index`, made anew at each call."""
        if not 0 <= index < self._n_indices:
            raise OptionError(
                f"expected index between 0 and {self._n_indices - 1}, got {index}; raise num_examples for more"
            )
        return self._example(index, self._draft(seeded(self.name, self.seed, index), self._depth(index)))

    def _example(self, index: int, draft: Draft) -> Example:
        prompt, n_tokens = self._fill(draft)
        return Example(
            task=self.name,
            index=index,
            prompt=prompt,
            question=draft.question,
            references=draft.references,
            reference_text=draft.reference_text,
            max_new_tokens=draft.max_new_tokens,
            n_tokens=n_tokens,
            depths=draft.depths,
        )

    def evaluate(self, example: Example, completion: str) -> float:
        """Score of a completion, between 0 and 1."""
        return share_found(example.references, completion)

    @abstractmethod
    def _draft(self, rng: random.Random, depth: float) -> Draft:
        """An example with what is asked for at `depth` (see Example.depths)."""

    def _depth(self, index: int) -> float:
        """Between 0 and 1, evenly spread over any run of indices (a golden ratio sequence)."""
        return (seeded(self.name, self.seed, "depth").random() + index * _GOLDEN_RATIO) % 1.0

    def _fill(self, draft: Draft) -> tuple[str, int]:
        """The longest prompt within n_tokens, and its number of tokens."""
        counts: dict[int, int] = {}

        def fits(n_units: int) -> bool:
            if draft.n_units is not None and n_units > draft.n_units:
                return False
            counts[n_units] = self.count_tokens(draft.prompt_of(n_units))
            return counts[n_units] <= self.n_tokens

        if not fits(0):
            raise OptionError(
                f"expected n_tokens to hold at least the prompt of {self.name} without a haystack "
                f"({counts[0]} tokens), got {self.n_tokens}; choose a larger n_tokens"
            )
        n_units = last_fit(fits, self.n_tokens)
        return draft.prompt_of(n_units), counts[n_units]


def share_found(references: Sequence[str], completion: str) -> float:
    """RULER's string_match_all: share of the references found in the completion, whatever the case."""
    return sum(reference.lower() in completion.lower() for reference in references) / len(references)
