"""What a text is about, how it is told: answers that stand nowhere and follow from all of it.

Texts are made from sentences of known subjects and moods (subject_words.py). Ours: no published task has texts of any
length whose subject is known. One sentence is one unit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from .base import Draft, Example, Task
from .scoring import any_found
from .subject_words import MOODS, SUBJECTS, TIMES, Subject
from .words import below, pick, shuffled


class Gist(Task):
    """The subject of a text that has one."""

    name = "gist"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        subject = pick(rng, SUBJECTS)
        question = "What is the text about?"
        return Draft(
            prompt_of=_prompt_maker(self, [_sentences(rng, subject)], question, "The text is mainly about the work of"),
            question=question,
            references=subject.signs,
            reference_text=f" {subject.name}",
            max_new_tokens=16,
            depths=(),
        )

    def evaluate(self, example: Example, completion: str) -> float:
        return any_found(example.references, completion)


class Subjects(Task):
    """The subjects of a text in three sections."""

    name = "topics"
    n_subjects = 3

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        chosen = shuffled(rng, SUBJECTS)[: self.n_subjects]
        question = "Which three places of work does the text describe, one after the other?"
        return Draft(
            prompt_of=_prompt_maker(
                self, [_sentences(rng, one) for one in chosen], question, "The text describes the work of"
            ),
            question=question,
            references=tuple(one.name for one in chosen),
            reference_text=" {}, then {}, and then {}".format(*(one.name for one in chosen)),
            max_new_tokens=32,
            depths=(),
        )

    def evaluate(self, example: Example, completion: str) -> float:
        signs = {one.name: one.signs for one in SUBJECTS}
        return sum(any_found(signs[name], completion) for name in example.references) / self.n_subjects


class Tone(Task):
    """The mood in which a text is told: two sentences of three show it."""

    name = "tone"

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        mood = pick(rng, tuple(MOODS))
        question = f"Is the mood of the text {', '.join([*MOODS][:-1])} or {[*MOODS][-1]}?"
        sentences = _sentences(rng, pick(rng, SUBJECTS), MOODS[mood])
        return Draft(
            prompt_of=_prompt_maker(self, [sentences], question, "The mood of the text is"),
            question=question,
            references=(mood,),
            reference_text=f" {mood}",
            max_new_tokens=8,
            depths=(),
        )


def _sentences(rng: random.Random, subject: Subject, mood: Sequence[str] = ()) -> Iterator[str]:
    """Endless sentences about a subject, each with the space before it."""
    draws = [_draw(rng, words) for words in (subject.people, subject.acts, subject.places, subject.facts, TIMES)]
    people, acts, places, facts, times = draws
    ends = _draw(rng, mood)
    while True:
        kind = below(rng, 6)
        end = f", {next(ends)}" if mood and below(rng, 3) else ""
        if kind == 0:
            yield f" {next(facts)}{end}."
        elif kind < 3:
            person = next(people)
            yield f" {person[0].upper()}{person[1:]} {next(acts)} {next(places)}{end}."
        else:
            yield f" {next(times)} {next(people)} {next(acts)}{end}."


def _draw(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    """Endless draws that use every word once before any comes again."""
    while words:
        yield from shuffled(rng, words)


def _prompt_maker(task: Task, sources: Sequence[Iterator[str]], question: str, prefix: str) -> Callable[[int], str]:
    """Prompts of n sentences, an equal share from each source, a paragraph each."""
    units: list[list[str]] = [[] for _ in sources]

    def prompt_of(n_units: int) -> str:
        shares = [(n_units + i) // len(sources) for i in range(len(sources))][::-1]
        for known, source, share in zip(units, sources, shares):
            known.extend(islice(source, max(0, share - len(known))))
        text = "\n\n".join("".join(known[:share]).strip() for known, share in zip(units, shares)).strip()
        return task.chat.prompt(f"Read the following text. I will ask about it.\n\n{text}\n\n{question}", prefix)

    return prompt_of
