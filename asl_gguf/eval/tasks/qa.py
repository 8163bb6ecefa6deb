"""Questions about paragraphs among other paragraphs, from a SQuAD or HotpotQA file that the user gives.

RULER's qa_1 and qa_2 (arXiv 2404.06654; wording, choice of the other documents and scoring as in its public
generator, scripts/data/synthetic/qa.py). qa_1 reads SQuAD 2.0 (dev-v2.0.json), qa_2 HotpotQA's distractor setting
(hotpot_dev_distractor_v1.json). One document is one unit. The documents asked about stand at the stated depths.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import OptionError
from .base import Draft, Example, Task
from .files import read_json
from .haystacks import place, spread
from .scoring import any_found
from .words import seeded, shuffled


@dataclass(frozen=True)
class Question:
    """documents: those that hold the answer; related: those that go into the prompt before any other."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    related: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    questions: tuple[Question, ...]
    documents: tuple[str, ...]


class DocumentQuestion(Task):
    """Seeds of other parity share no question."""

    needs_source = True

    def indices(self, depths: Sequence[int]) -> Sequence[int]:
        return range(min(self.num_examples, len(self._questions())))

    def get_example(self, index: int) -> Example:
        if not 0 <= index < len(questions := self._questions()):
            raise OptionError(f"expected an index below {len(questions)}, the questions for this seed, got {index}")
        rng = seeded(self.name, self.seed, index)
        return self._example(index, self._draft_of(questions[index], rng, self._depth(index)))

    def _questions(self) -> Sequence[Question]:
        assert self.source is not None
        return _questions_of(self.name, self.source, self.seed)

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        raise NotImplementedError("examples come from the file: see _draft_of")

    def _draft_of(self, asked: Question, rng: random.Random, depth: float) -> Draft:
        assert self.source is not None
        own = set(asked.documents)
        related = shuffled(rng, [document for document in asked.related if document not in own])
        known = own | set(related)
        others = shuffled(rng, [one for one in _read(self.name, self.source).documents if one not in known])
        units = [*related, *others]
        depths = sorted(spread(depth, len(asked.documents)))
        facts = list(zip(depths, asked.documents))
        intro = "Answer the question based on the given documents. Only give me the answer and do not output any other words."

        def prompt_of(n_units: int) -> str:
            documents = place(units[:n_units], facts)
            context = "\n\n".join(f"Document {i}:\n{document}" for i, document in enumerate(documents, 1))
            return self.chat.prompt(
                f"{intro}\n\nThe following are given documents.\n\n{context}\n\n{intro}\n\nQuestion: {asked.text}",
                "Answer:",
            )

        return Draft(
            prompt_of=prompt_of,
            question=asked.text,
            references=asked.answers,
            reference_text=f" {asked.answers[0]}",
            max_new_tokens=32,
            depths=tuple(depths),
            n_units=len(units),
        )

    def _fill(self, draft: Draft) -> tuple[str, int]:
        assert draft.n_units is not None
        prompt, n_tokens = super()._fill(draft)
        if prompt == draft.prompt_of(draft.n_units):
            raise OptionError(
                f"expected documents for prompts of {self.n_tokens} tokens in {self.source}, got {n_tokens} tokens; "
                "choose a smaller length or a larger file"
            )
        return prompt, n_tokens

    def evaluate(self, example: Example, completion: str) -> float:
        return any_found(example.references, completion)


class SquadQuestion(DocumentQuestion):
    """One paragraph holds the answer; the other paragraphs of its article come before any other."""

    name = "qa_1"
    source_is = "a SQuAD 2.0 JSON file"


class HotpotQuestion(DocumentQuestion):
    """The answer needs two of the ten paragraphs of a question; all ten count as asked about, as in RULER."""

    name = "qa_2"
    source_is = "a HotpotQA JSON file"


@lru_cache(maxsize=8)
def _questions_of(name: str, path: str, seed: int) -> Sequence[Question]:
    return shuffled(seeded("questions", seed), _read(name, path).questions[seed % 2 :: 2])


@lru_cache(maxsize=4)
def _read(name: str, path: str) -> Corpus:
    """The file's questions and documents.

    Raises:
        OptionError: it cannot be read, or has another form.
    """
    data = read_json(path)
    form, read = {
        "qa_1": ("SQuAD ({'data': [{'paragraphs': [{'context', 'qas': [...]}]}]})", _squad),
        "qa_2": ("HotpotQA ([{'question', 'answer', 'context': [[title, [sentence, ...]]]}])", _hotpot),
    }[name]
    try:
        questions = tuple(read(data))
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise OptionError(
            f"expected the form of {form} in {path}, got something else ({type(err).__name__}: {err}); give another file"
        ) from None
    if len(questions) < 2:
        raise OptionError(f"expected at least two questions with answers in {path}, got {len(questions)}")
    documents = dict.fromkeys(one for question in questions for one in (*question.documents, *question.related))
    return Corpus(questions, tuple(sorted(documents)))


def _squad(data: Any) -> Iterator[Question]:
    for article in data["data"]:
        contexts = tuple(paragraph["context"] for paragraph in article["paragraphs"])
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                if answers and not asked.get("is_impossible", False):
                    related = tuple(context for context in contexts if context != paragraph["context"])
                    yield Question(asked["question"], answers, (paragraph["context"],), related)


def _hotpot(data: Any) -> Iterator[Question]:
    for asked in data:
        documents = tuple(f"{title}\n{''.join(lines)}" for title, lines in asked["context"])
        yield Question(asked["question"], (asked["answer"],), tuple(dict.fromkeys(documents)), ())
