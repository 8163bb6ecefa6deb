"""What a task is: a number of examples, each a prompt of a chosen length, and the score of a completion."""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...demo_text import last_fit
from ...errors import OptionError
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
    """An example before its length is known. prompt_of: the prompt with a number of haystack units."""

    prompt_of: Callable[[int], str]
    question: str
    references: tuple[str, ...]
    reference_text: str
    max_new_tokens: int
    depths: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Task(ABC):
    """A number of examples of one kind, length and seed.

    An example depends on the seed and its index alone: another n_tokens gives the same question with
    more or less haystack, another num_examples the same examples.

    count_tokens: number of tokens of a text, with the special tokens the caller wants to count.
    n_tokens: a prompt has at most this many tokens, and one more haystack unit would exceed it.
    chat: the format of the prompt. The tasks in `shot` form (see the classes) do not use it.
    """

    name: ClassVar[str]

    count_tokens: Callable[[str], int]
    n_tokens: int
    num_examples: int
    seed: int
    chat: ChatFormat = CHATML

    def __post_init__(self) -> None:
        for option in ("n_tokens", "num_examples"):
            value = getattr(self, option)
            if value < 1:
                raise OptionError(f"expected {option} >= 1, got {value}; choose a larger {option}")

    def get_example(self, index: int) -> Example:
        """Example number `index`, made anew at each call."""
        if not 0 <= index < self.num_examples:
            raise OptionError(
                f"expected index between 0 and {self.num_examples - 1}, got {index}; raise num_examples for more"
            )
        draft = self._draft(seeded(self.name, self.seed, index), self._depth(index))
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
