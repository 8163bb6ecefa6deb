"""`asl-gguf bench agents`: sessions whose prompts grow by tool output, each turn with a question about it or about an older one.

A turn's prompt is the whole conversation so far. The full cache evaluates what is new; under a budget what is new is pruned
over what is kept of the turns before it, or, with `asl_full_kv`, the whole past is chosen from again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

from ..drop_in.llama import Llama
from ..eval.demo_text import last_fit, sentences
from ..eval.tasks import CHATML, DEVELOPMENT_SEED
from ..eval.tasks.haystacks import context_maker
from ..eval.tasks.needles import N_DIGITS, needle
from ..eval.tasks.words import keys, numbers, seeded
from ..models.named import resolve
from ..native.model import ContextOptions, Model
from .answer import ANSWER_TOKENS, timed_answer


@dataclass(frozen=True)
class Question:
    """What is asked in a turn, up to where the answer goes."""

    text: str
    answer: str
    is_older: bool
    """the fact stands in an earlier turn"""


@dataclass(frozen=True)
class Turn:
    """Tool output with one fact in it, and the questions after it."""

    text: str
    questions: tuple[Question, ...]


def make_session(count_tokens: Callable[[str], int], n_first: int, n_turns: int, n_turn: int, index: int) -> list[Turn]:
    """Session number `index`: a first turn of at most n_first tokens, then n_turns of at most n_turn, one fact in each."""
    rng = seeded("agents", DEVELOPMENT_SEED, index)
    facts = list(islice(zip(keys(rng), numbers(rng, N_DIGITS)), n_turns + 1))
    source = sentences(rng)
    turns = []
    for number, fact in enumerate(facts):
        context_of = context_maker(source, [(0.2 + 0.6 * rng.random(), " " + needle(*fact))])
        n_most = n_turn if number else n_first
        text = context_of(last_fit(lambda n, of=context_of, most=n_most: count_tokens(of(n)) <= most, n_most))  # type: ignore[misc]
        questions = [_question(*fact, False)]
        if number:
            questions.append(_question(*facts[int(rng.random() * number)], True))
        turns.append(Turn(text, tuple(questions)))
    return turns


def _question(key: str, number: str, is_older: bool) -> Question:
    asks = f"What is the special magic number for {key} mentioned in the provided text?"
    reply = f"The special magic number for {key} mentioned in the provided text is:"
    return Question(f"{asks}{CHATML.assistant_prefix}{reply}", number, is_older)


@dataclass(frozen=True)
class Answered:
    """One question, answered."""

    right: bool
    is_older: bool
    turn: int
    seconds: float
    """CPU seconds to the first token, of all threads"""
    kv_bytes: int
    """K/V of the conversation"""
    prompt: tuple[int, ...]
    """the conversation up to the answer, earlier answers as this way gave them"""
    answer: str
    """the right one"""


def bench_agents(
    name_or_path: str,
    options: ContextOptions,
    *,
    n_tokens: int,
    n_turns: int,
    turn_tokens: int,
    budget: float | int,
    policy: str,
    dequant: str,
    runs: int,
) -> dict[str, Any]:
    """Right answers, CPU seconds to the first token and K/V by turn, of the same `runs` sessions held in each way.

    Each way goes on from its own answers, so that one wrong answer may bring others. Beside that, the full cache gets the
    very prompts in which a way was asked about an older fact.

    Args:
        n_tokens: of the first turn.
    """
    path = str(resolve(name_or_path))
    model = Model(path, options)
    sessions = [
        make_session(lambda text: len(model.tokenize(text)), n_tokens, n_turns, turn_tokens, index)
        for index in range(runs)
    ]
    n_asked = 2 * max(_asked_tokens(model, turn) for session in sessions for turn in session)
    n_ctx = n_tokens + n_turns * turn_tokens + (n_turns + 1) * n_asked
    pruned: dict[str, Any] = {"asl_budget": budget, "asl_policy": policy, "asl_dequant": dequant}
    pruned |= {"asl_room": n_turns * (turn_tokens // 2 + n_asked), "asl_calibration": False}
    ways: dict[str, dict[str, Any]] = {
        "full_cache": {},
        "pruned": pruned,
        "pruned_full_kv": pruned | {"asl_full_kv": True},
    }
    result: dict[str, Any] = {
        "model": path.rsplit("/", 1)[-1],
        "budget": budget,
        "sessions": runs,
        "turns": n_turns,
        "n_threads": options.n_threads,
    }
    older: dict[str, list[Answered]] = {}
    for way, asl_options in ways.items():
        with contextlib.closing(Llama(path, **options.to_kwargs(n_ctx), **asl_options)) as llm:
            answers = [answer for session in sessions for answer in _hold(llm, model, session)]
        result[way] = _summary(answers, n_turns)
        older[way] = [answer for answer in answers if answer.is_older]
    with contextlib.closing(Llama(path, **options.to_kwargs(n_ctx), asl_budget=1.0, asl_dequant=dequant)) as llm:
        for way in list(ways)[1:]:
            result[way]["right_older_of_full_cache_on_same_prompts"] = _share_right(llm, model, older[way])
    full, stock_seconds = result["full_cache"], result["full_cache"]["seconds_by_turn"]
    for way in list(ways)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(result[way]["seconds_by_turn"], stock_seconds)]
        result[way]["seconds_to_full_first_turn"] = ratios[0]
        result[way]["seconds_to_full_later_turns"] = sum(result[way]["seconds_by_turn"][1:]) / sum(stock_seconds[1:])
        result[way]["seconds_to_full_worst_turn"] = max(ratios[1:], default=0.0)
        result[way]["right_older_to_full"] = result[way]["right_older"] / max(full["right_older"], 1e-9)
    model.close()
    return result


def _asked_tokens(model: Model, turn: Turn) -> int:
    """Tokens of a turn's questions with their answers, in this model's vocabulary."""
    texts = [f"<|im_end|>\n{CHATML.user_prefix}{question.text}" for question in turn.questions]
    return sum(len(model.tokenize(text)) + ANSWER_TOKENS for text in texts)


def _share_right(llm: Llama, model: Model, asked: list[Answered]) -> float:
    """Share of right answers to prompts of another way, which its own answers are part of."""
    right = [one.answer in model.detokenize(timed_answer(llm, list(one.prompt), time.process_time)[0]) for one in asked]
    return mean(right) if right else 0.0


def _summary(answers: list[Answered], n_turns: int) -> dict[str, Any]:
    def of(turn: int) -> list[Answered]:
        return [answer for answer in answers if answer.turn == turn]

    return {
        "right_newest": mean(answer.right for answer in answers if not answer.is_older),
        "right_older": mean(answer.right for answer in answers if answer.is_older) if n_turns else 0.0,
        # of a turn's first question: its prompt brings the tool output
        "seconds_by_turn": [mean(a.seconds for a in of(turn) if not a.is_older) for turn in range(n_turns + 1)],
        "kv_bytes": max(answer.kv_bytes for answer in answers),
    }


def _hold(llm: Llama, model: Model, session: list[Turn]) -> Iterator[Answered]:
    llm.reset()
    tokens: list[int] = []
    for number, turn in enumerate(session):
        for i, question in enumerate(turn.questions):
            start = CHATML.user_prefix if not tokens else f"<|im_end|>\n{CHATML.user_prefix}"
            text = f"{start}{turn.text}\n{question.text}" if i == 0 else f"{start}{question.text}"
            tokens += model.tokenize(text) if not tokens else llm.tokenize(text.encode("utf-8"), False, True)
            answer, seconds = timed_answer(llm, tokens, time.process_time)
            tokens += answer
            report = llm.last_prefill
            assert report is not None
            n_bytes = report.kv_bytes_prompt or report.kv_bytes * report.prompt_tokens // llm.n_ctx()
            prompt = tuple(tokens[: len(tokens) - len(answer)])
            right = question.answer in model.detokenize(answer)
            yield Answered(right, question.is_older, number, seconds, n_bytes, prompt, question.answer)
