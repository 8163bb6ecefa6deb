"""`asl-gguf bench turns`: a chat about one document, each turn asking for something else.

K/V that were chosen for the first question miss what the next one asks for. Beside the full cache: going on from what
was kept, prefilling the whole chat again for every turn, and selecting again from K/V of all tokens (`asl_full_kv`), as
they were computed or quantised.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean, median
from typing import Any

from ..drop_in.llama import Llama
from ..eval.demo_text import last_fit, sentences
from ..eval.tasks import CHATML, DEVELOPMENT_SEED
from ..eval.tasks.haystacks import context_maker, spread
from ..eval.tasks.needles import N_DIGITS, needle
from ..eval.tasks.words import keys, numbers, seeded, shuffled
from ..models.named import resolve
from ..native.model import ContextOptions, Model
from .answer import timed_answer

_KINDS = ("q8_0",)
_TURN_TOKENS = 128
"""at most, of a question and its answer"""


@dataclass(frozen=True)
class Chat:
    """A document, and questions about it with their answers."""

    document: str
    questions: tuple[str, ...]
    """what the user says in each turn, and how the reply begins"""
    answers: tuple[str, ...]


def make_chat(count_tokens: Callable[[str], int], n_tokens: int, n_turns: int, index: int) -> Chat:
    """Chat number `index`: a document of at most n_tokens that holds one number for each turn."""
    rng = seeded("turns", DEVELOPMENT_SEED, index)
    pairs = list(islice(zip(keys(rng), numbers(rng, N_DIGITS)), n_turns))
    places = shuffled(rng, spread(rng.random(), n_turns))
    context_of = context_maker(sentences(rng), [(where, " " + needle(*pair)) for where, pair in zip(places, pairs)])
    questions = []
    for turn, (key, _) in enumerate(pairs):
        asks = f"What is the special magic number for {key} mentioned in the provided text?"
        reply = f"The special magic number for {key} mentioned in the provided text is:"
        start = "\n" if turn == 0 else f"<|im_end|>\n{CHATML.user_prefix}"
        questions.append(f"{start}{asks}{CHATML.assistant_prefix}{reply}")
    head = CHATML.user_prefix
    n_units = last_fit(lambda n: count_tokens(head + context_of(n)) <= n_tokens, n_tokens)
    return Chat(head + context_of(n_units), tuple(questions), tuple(number for _, number in pairs))


def bench_turns(
    name_or_path: str,
    options: ContextOptions,
    *,
    n_tokens: int,
    n_turns: int,
    budget: float | int,
    policy: str,
    dequant: str,
    runs: int,
) -> dict[str, Any]:
    """Right answers and seconds to the first token by turn, of each way to hold the same `runs` chats.

    Returns:
        For each way: the share of right answers and the median seconds by turn, and what memory it takes.
    """
    path = str(resolve(name_or_path))
    model = Model(path, options)
    chats = [make_chat(lambda text: len(model.tokenize(text)), n_tokens, n_turns, index) for index in range(runs)]
    shared = options.to_kwargs(n_tokens + n_turns * _TURN_TOKENS)
    pruned = {"asl_budget": budget, "asl_policy": policy, "asl_dequant": dequant, "asl_min_prompt": 0}
    pruned |= {"asl_room": n_turns * _TURN_TOKENS, "asl_calibration": False}
    ways: dict[str, tuple[dict[str, Any], bool]] = {
        "full_cache": ({}, False),
        "goes_on": (pruned, False),
        "prefills_again": (pruned, True),
        "selects_again": (pruned | {"asl_full_kv": True}, False),
    }
    ways |= {f"selects_again_{kind}": (pruned | {"asl_full_kv": kind}, False) for kind in _KINDS}
    result: dict[str, Any] = {
        "model": path.rsplit("/", 1)[-1],
        "document_tokens": max(len(model.tokenize(chat.document)) for chat in chats),
        "budget": budget,
        "chats": runs,
        "turns": n_turns,
        "n_threads": options.n_threads,
    }
    for way, (asl_options, fresh) in ways.items():
        with contextlib.closing(Llama(path, **shared, **asl_options)) as llm:
            result[way] = _hold(llm, model, chats, fresh)
    model.close()
    return result


def _hold(llm: Llama, model: Model, chats: Sequence[Chat], fresh: bool) -> dict[str, Any]:
    turns = [list(_turns(llm, model, chat, fresh)) for chat in chats]
    report = llm.last_prefill
    assert report is not None
    return {
        "right": [mean(right for right, _ in turn) for turn in zip(*turns)],
        "seconds": [median(seconds for _, seconds in turn) for turn in zip(*turns)],
        "kv_bytes": report.kv_bytes,
        "host_bytes": report.full_kv_bytes,
    }


def _turns(llm: Llama, model: Model, chat: Chat, fresh: bool) -> Iterator[tuple[bool, float]]:
    """Whether each turn's answer is right, and the seconds to its first token."""
    llm.reset()
    tokens = model.tokenize(chat.document)
    for question, right in zip(chat.questions, chat.answers):
        tokens += llm.tokenize(question.encode("utf-8"), add_bos=False, special=True)
        if fresh:
            llm.reset()
        answer, seconds = timed_answer(llm, tokens, time.perf_counter)
        tokens += answer
        yield right in model.detokenize(answer), seconds
