"""Counting: which words come most often.

RULER's common words and frequent words (arXiv 2404.06654; wording and frequencies as in its public generators,
scripts/data/synthetic/common_words_extraction.py and freq_words_extraction.py). Its list of English words is not
ours: common words are pairs such as amber-acorn, the frequent words six random letters as there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from .base import Draft, Task
from .words import keys, names, seeded

_N_COMMON = 10
_LONG = 4096
"""tokens from which on RULER repeats words more often"""
_ALPHA = 2.0
_DOTS = "..."
_FEWEST_CODED = 60
"""coded words from which on the fourth most frequent one is rarer than the third at any length"""


class CommonWords(Task):
    """cwe: the ten words that a numbered list repeats. A worked example comes first, as in RULER."""

    name = "cwe"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        long = self.n_tokens >= _LONG
        n_common, n_other = (30, 3) if long else (6, 1)
        words = keys(rng)
        worked_words = list(islice(words, 40 if long else 20))
        worked_list = _List(rng, iter(worked_words), *((10, 3) if long else (3, 1)))
        shown = worked_list.text(len(worked_words) - _N_COMMON)
        listed = _List(rng, words, n_common, n_other)
        prefix = f"Answer: The top {_N_COMMON} words that appear most often in the list are:"
        question = f"Question: What are the {_N_COMMON} most common words in the above list?"
        intro = (
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often."
        )
        worked = f"{intro}\n{shown}\n{question} {prefix}{_numbered(worked_list.common)}\n"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{worked}{intro}\n{listed.text(n)}\n{question}", prefix),
            question=question,
            references=tuple(listed.common),
            reference_text=_numbered(listed.common),
            max_new_tokens=120,
            depths=(),
        )


class _List:
    """Common words and ever more others, each repeated, in an order that more words do not change."""

    def __init__(self, rng: random.Random, words: Iterator[str], n_common: int, n_other: int) -> None:
        self._rng, self._words, self._n_other = rng, words, n_other
        self.common = list(islice(words, _N_COMMON))
        self._entries = [(rng.random(), word) for word in self.common for _ in range(n_common)]
        self._n_fixed = len(self._entries)

    def text(self, n_others: int) -> str:
        n_entries = self._n_fixed + n_others * self._n_other
        while len(self._entries) < n_entries:
            word = next(self._words)
            self._entries += [(self._rng.random(), word) for _ in range(self._n_other)]
        return _numbered([word for _, word in sorted(self._entries[:n_entries])]).lstrip()


class FrequentWords(Task):
    """fwe: the three most frequent coded words, the dots not counted. The k-th has a share of k^-2 / zeta(2)."""

    name = "fwe"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        text_of, frequent = _coded_text(rng)
        question = (
            "Question: Do not provide any explanation. Please ignore the dots '....'. "
            "What are the three most frequently appeared words in the above coded text?"
        )
        intro = (
            "Read the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words."
        )
        prefix = "Answer: According to the coded text above, the three most frequently appeared words are:"
        return Draft(
            prompt_of=lambda n: self.chat.prompt(f"{intro} {text_of(n)}\n{question}", prefix),
            question=question,
            references=tuple(frequent),
            reference_text=f" {', '.join(frequent[:-1])}, and {frequent[-1]}",
            max_new_tokens=50,
            depths=(),
        )


def _coded_text(rng: random.Random) -> tuple[Callable[[int], str], Sequence[str]]:
    """A text by its number of words beyond the fewest, and the three words after the dots in frequency."""
    zeta = math.pi**2 / 6
    start = rng.random()
    source = (name.lower() for name in names(rng, 6))
    words = [_DOTS, *islice(source, 3)]
    frequent = words[1:]
    draws: list[random.Random] = []
    orders: list[list[float]] = []

    def text_of(n_more: int) -> str:
        n_words, entries = _FEWEST_CODED + n_more, []
        for rank in range(n_words):
            count = int(n_words * (rank + 1) ** -_ALPHA / zeta)
            if not count:
                break
            if len(orders) == rank:  # places of a word depend on its rank alone, not on the lengths tried before
                draws.append(seeded(start, rank))
                orders.append([])
            if len(words) == rank:
                words.append(next(source))
            orders[rank] += [draws[rank].random() for _ in range(count - len(orders[rank]))]
            entries += [(order, words[rank]) for order in orders[rank][:count]]
        return " ".join(word for _, word in sorted(entries))

    return text_of, frequent


def _numbered(words: Sequence[str]) -> str:
    return "".join(f" {i}. {word}" for i, word in enumerate(words, 1))
