"""Scores of completions as RULER's and InfiniteBench's evaluators define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}


def any_found(references: Sequence[str], completion: str) -> float:
    """RULER's string_match_part: 1 if one of the references is in the completion, whatever the case."""
    return float(any(reference.lower() in completion.lower() for reference in references))


def first_number(completion: str) -> str | None:
    """The first number written in a text; None if there is none."""
    found = re.search(r"\d+\.\d+|\d+", completion)
    return found[0] if found else None


def last_integer(completion: str) -> str | None:
    """The last integer written in a text; None if there is none."""
    found = re.findall(r"-?\d+", completion)
    return found[-1] if found else None


def words_of(completion: str) -> list[str]:
    """A completion cut at white space and punctuation, as InfiniteBench cuts it for keys and values."""
    return re.sub(r"[\n:\"'.,?!{}]", " ", completion).split()


def first_letter(completion: str, letters: str) -> str | None:
    """The first of these capital letters that stands alone; None if there is none."""
    found = re.search(rf"\b[{letters}]\b", completion)
    return found[0] if found else None


def token_f1(reference: str, completion: str, *, characters: bool = False) -> float:
    """F1 of the words both have, without case, punctuation and articles; of the characters for Chinese."""
    wanted, found = (_normal(text, characters) for text in (reference, completion))
    n_same = sum((Counter(wanted) & Counter(found)).values())
    return 2 * n_same / (len(wanted) + len(found)) if n_same else 0.0


def rouge_l(reference: str, completion: str) -> float:
    """F1 of the longest common subsequence of words, of the texts as a whole."""
    wanted, found = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reference, completion))
    lengths = [0] * (len(found) + 1)
    for word in wanted:
        before = 0  # of the row above, one to the left
        for i, other in enumerate(found, 1):
            before, lengths[i] = lengths[i], before + 1 if word == other else max(lengths[i], lengths[i - 1])
    return 2 * lengths[-1] / (len(wanted) + len(found)) if lengths[-1] else 0.0


def _normal(text: str, characters: bool) -> list[str]:
    if characters:
        return [c for c in text.lower() if not c.isspace() and (c.isalnum() or ord(c) > 0x3400)]
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in plain.split() if word not in _ARTICLES]
