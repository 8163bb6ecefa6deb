"""InfiniteBench's tasks on real texts, read from its JSON lines files, which the user gives.

Each line has `context`, `input` (the question), `answer` (a text or a list) and, for choices, `options`
(arXiv 2402.13718; wording as in its public evaluator, src/prompt.py, scoring after src/compute_scores.py: the score
of a summary is ROUGE-L of the whole text, that of a choice looks for the first letter that stands alone). A context
that is too long loses its middle, as there. Math.Calc is left out: its answers have thousands of numbers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from ...errors import OptionError
from .base import Draft, Example, Task
from .files import read_json_lines
from .scoring import any_found, first_letter, rouge_l, token_f1
from .words import seeded, shuffled

_LETTERS = "ABCD"


class FromFile(Task):
    """One line of the file is one example. Seeds of other parity share no line.

    A white-space separated word is one unit; a context that fits is shorter than the limit.
    """

    needs_source = True
    intro: ClassVar[str]
    asks: ClassVar[str] = "Question: {input}"
    prefix: ClassVar[str] = "Answer:"
    n_answer_tokens: ClassVar[int] = 40

    def __init_subclass__(cls) -> None:
        cls.source_is = f"{cls.name}.jsonl of InfiniteBench" if "name" in vars(cls) else None

    def indices(self, depths: Sequence[int]) -> Sequence[int]:
        return range(min(self.num_examples, len(self._lines())))

    def _lines(self) -> Sequence[Mapping[str, Any]]:
        assert self.source is not None
        return _lines_of(self.source, self.seed)

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        raise NotImplementedError("examples come from the file: see _draft_of")

    def get_example(self, index: int) -> Example:
        if not 0 <= index < len(lines := self._lines()):
            raise OptionError(f"expected an index below {len(lines)}, the lines for this seed, got {index}")
        return self._example(index, self._draft_of(lines[index]))

    def _draft_of(self, line: Mapping[str, Any]) -> Draft:
        context_of, n_units = _cut_in_the_middle(line["context"])
        references = self._references(line)
        fields = {"input": line["input"], **{f"option_{x}": o for x, o in zip(_LETTERS, line.get("options") or ())}}
        question = self.asks.format_map(_Fields(fields))
        return Draft(
            prompt_of=lambda n: self.chat.prompt(
                f"{self.intro}\n\n{context_of(n)}\n\n{question}".rstrip(), self.prefix
            ),
            question=question,
            references=references,
            reference_text=f" {references[0]}",
            max_new_tokens=self.n_answer_tokens,
            depths=(),
            n_units=n_units,
        )

    def _references(self, line: Mapping[str, Any]) -> tuple[str, ...]:
        answer = line["answer"]
        return tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)

    def evaluate(self, example: Example, completion: str) -> float:
        return max(token_f1(reference, completion) for reference in example.references)


class BookQuestion(FromFile):
    """En.QA"""

    name = "longbook_qa_eng"
    intro = "Read the book and answer the question. Be very concise in your answer."


class ChineseBookQuestion(FromFile):
    """Zh.QA"""

    name = "longbook_qa_chn"
    intro = "请根据以下书籍回答我的问题。"
    asks = "问题：{input}"
    prefix = "答案："

    def evaluate(self, example: Example, completion: str) -> float:
        return max(token_f1(reference, completion, characters=True) for reference in example.references)


class BookSummary(FromFile):
    """En.Sum"""

    name = "longbook_sum_eng"
    intro = "Summarize the book below."
    asks = ""
    prefix = "Summary:"
    n_answer_tokens = 1200

    def evaluate(self, example: Example, completion: str) -> float:
        return max(rouge_l(reference, completion) for reference in example.references)


class Dialogue(FromFile):
    """En.Dia"""

    name = "longdialogue_qa_eng"
    intro = (
        "Below is a dialogue script where one random occurrence of a character name is replaced with "
        '"$$MASK$$", and you should try to guess who that character is.'
    )
    asks = ""
    prefix = "The name that has been replaced with $$MASK$$ is likely"

    def evaluate(self, example: Example, completion: str) -> float:
        return any_found(example.references, completion)


class Choice(FromFile):
    """Four options, of which the answer is one; the letter counts."""

    n_answer_tokens = 8

    def _references(self, line: Mapping[str, Any]) -> tuple[str, ...]:
        options, answers = line.get("options") or [], super()._references(line)
        letters = [_LETTERS[options.index(answer)] for answer in answers if answer in options[: len(_LETTERS)]]
        letters += [answer for answer in answers if answer in tuple(_LETTERS)]
        if len(options) != len(_LETTERS) or not letters:
            raise OptionError(
                f"expected four options and one of them as the answer in {self.source}, got {options!r} and {answers!r}"
            )
        return (letters[0],)

    def evaluate(self, example: Example, completion: str) -> float:
        return float(first_letter(completion, _LETTERS) == example.references[0])


class BookChoice(Choice):
    """En.MC"""

    name = "longbook_choice_eng"
    intro = "Read the book and answer the question."
    asks = "Question: {input}\nA. {option_A}\nB. {option_B}\nC. {option_C}\nD. {option_D}"
    prefix = "The letter of the correct answer is"


class CodeDebug(Choice):
    """Code.Debug"""

    name = "code_debug"
    intro = (
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it "
        "crash."
    )
    asks = "Options:\nA. {option_A}\nB. {option_B}\nC. {option_C}\nD. {option_D}"
    prefix = "The correct option is:"


FILE_TASKS: tuple[type[FromFile], ...] = (
    BookQuestion,
    ChineseBookQuestion,
    BookSummary,
    Dialogue,
    BookChoice,
    CodeDebug,
)


class _Fields(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


@lru_cache(maxsize=16)
def _lines_of(path: str, seed: int) -> Sequence[Mapping[str, Any]]:
    """The lines for a seed, checked."""
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        if missing := [name for name in ("context", "input", "answer") if name not in row]:
            raise OptionError(
                f"expected fields context, input and answer in {path}, got {', '.join(sorted(row)) or 'none'} in line "
                f"{number}; {missing[0]} is missing"
            )
    return shuffled(seeded("lines", seed), rows[seed % 2 :: 2])


def _cut_in_the_middle(text: str) -> tuple[Callable[[int], str], int]:
    """A text by the number of words that are left of it, half of them from each end; and how many there are."""
    words = re.findall(r"\s*\S+", text)

    def left(n_words: int) -> str:
        n_first = (n_words + 1) // 2
        return "".join([*words[:n_first], *words[len(words) - (n_words - n_first) :]]).strip()

    return left, len(words)
