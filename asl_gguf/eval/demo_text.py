"""The demo's document: a lighthouse logbook of a chosen length with one number hidden in it.

All text is made here, from our own sentences and a seed, so one seed gives the same document on
every machine. The hidden sentence and the question follow RULER's needle-in-a-haystack task.
"""

from __future__ import annotations

import dataclasses
import datetime
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import OptionError
from . import demo_words

_FIRST_DAY = datetime.date(1871, 3, 1)
_MAX_DAYS_BETWEEN_ENTRIES = 3
_MIN_SENTENCES, _MAX_SENTENCES = 3, 6


@dataclasses.dataclass(frozen=True)
class DemoDocument:
    """A document with one fact in it, and the question about that fact.

    answer: seven digits, once in `text`, neither in `question` nor in `answer_prefix`.
    answer_prefix: the start of the model's reply, up to where the answer goes.
    """

    text: str
    question: str
    answer: str
    answer_prefix: str


def make_document(
    count_tokens: Callable[[str], int], n_tokens: int = 2000, depth: float = 0.35, seed: int = 0
) -> DemoDocument:
    """A document of at most n_tokens tokens, which one more sentence would exceed.

    count_tokens: number of tokens of a text, with the special tokens the caller wants to count.
    depth: where the fact stands, as a share of the other text in characters: 0 first, 1 last. It
        stands between two sentences, so at most half a sentence off.
    seed: chooses the words, the topic and the number.

    Raises OptionError when an argument is outside its domain or n_tokens cannot hold the fact.
    """
    _check_options(n_tokens, depth)
    rng = random.Random(seed)
    topic = _pick(rng, demo_words.TOPICS)
    answer = str(1_000_000 + int(rng.random() * 9_000_000))
    fact = f"The special magic number for {topic} is: {answer}."
    source = sentences(rng)
    pieces: list[str] = []

    def text_of(n_sentences: int) -> str:
        while len(pieces) < n_sentences:
            pieces.append(next(source))
        return _insert_at_depth(pieces[:n_sentences], fact, depth)

    def fits(n_sentences: int) -> bool:
        return count_tokens(text_of(n_sentences)) <= n_tokens

    if not fits(0):
        raise OptionError(
            f"expected n_tokens to hold at least the hidden fact ({count_tokens(text_of(0))} "
            f"tokens), got {n_tokens}; choose a larger n_tokens"
        )
    return DemoDocument(
        text=text_of(last_fit(fits, n_tokens)),
        question=f"What is the special magic number for {topic} mentioned in the provided text?",
        answer=answer,
        answer_prefix=f"The special magic number for {topic} mentioned in the provided text is:",
    )


def _check_options(n_tokens: int, depth: float) -> None:
    if n_tokens < 1:
        raise OptionError(f"expected n_tokens >= 1, got {n_tokens}; choose a larger n_tokens")
    if not 0.0 <= depth <= 1.0:
        raise OptionError(
            f"expected depth between 0 and 1, got {depth}; it is a share of the text, so give 35 % as 0.35"
        )


def last_fit(fits: Callable[[int], bool], n_tokens: int) -> int:
    """A number of sentences that fits while one more does not; 0 is known to fit.

    This holds for any counter, also one whose count is not monotonic in the text.
    """
    too_many = 1
    while fits(too_many):
        if too_many > n_tokens:
            raise OptionError(
                f"expected count_tokens to count at least one token per sentence, got at most "
                f"{n_tokens} for {too_many} sentences; pass the tokenizer of the model"
            )
        too_many *= 2
    enough = too_many // 2
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if fits(middle):
            enough = middle
        else:
            too_many = middle
    return enough


def _insert_at_depth(pieces: Sequence[str], fact: str, depth: float) -> str:
    """The text with `fact` at the sentence boundary closest to `depth`.

    Each piece carries the white space before it, so joining them gives the paragraphs.
    """
    wanted = depth * sum(map(len, pieces))
    boundary = n_before = 0
    for piece in pieces:
        if n_before + len(piece) / 2 > wanted:
            break
        n_before += len(piece)
        boundary += 1
    return "".join([*pieces[:boundary], " " + fact, *pieces[boundary:]]).strip()


def sentences(rng: random.Random) -> Iterator[str]:
    """Endless logbook entries: sentences, each with the white space that goes before it."""
    bags = {name: _draw(rng, words) for name, words in demo_words.WORDS.items()}
    openings, templates = _draw(rng, demo_words.OPENINGS), _draw(rng, demo_words.SENTENCES)
    yield " This is the logbook of the Gannet Rock light, kept for the harbour board."
    day = _FIRST_DAY
    while True:
        date = f"{day.day} {demo_words.MONTHS[day.month - 1]} {day.year}"
        yield "\n\n" + _fill(next(openings), bags, date)
        n_more = _MIN_SENTENCES + int(rng.random() * (_MAX_SENTENCES - _MIN_SENTENCES + 1))
        for _ in range(n_more):
            yield " " + _fill(next(templates), bags, date)
        day += datetime.timedelta(days=1 + int(rng.random() * _MAX_DAYS_BETWEEN_ENTRIES))


def _fill(template: str, bags: Mapping[str, Iterator[str]], date: str) -> str:
    """Put words in the template's fields; {other} is a second person."""
    words = {"date": date}
    for field in re.findall(r"{(\w+)}", template):
        if field == "other":
            words[field] = next(p for p in bags["person"] if p != words.get("person"))
        elif field not in words:
            words[field] = next(bags[field])
    sentence = template.format_map(words)
    return sentence[0].upper() + sentence[1:]


def _draw(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    """Endless draws that use every word once before any comes again."""
    while True:
        left = list(words)
        while left:
            yield left.pop(int(rng.random() * len(left)))


def _pick(rng: random.Random, words: Sequence[str]) -> str:
    # random() is the only method whose sequence Python promises to keep between versions.
    return words[int(rng.random() * len(words))]
