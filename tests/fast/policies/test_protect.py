"""`asl_protect`: which tokens a role, a span or a pattern stands for, and that `Llama` keeps them."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest

from asl_gguf import ContextFullError, OptionError, PromptError
from asl_gguf.policies import StreamingLLM
from asl_gguf.policies.protect import Protection
from harness import prompt
from tiny_llama import SETTLES, TEXT, cells, chat, complete

PIECES = [b"<s>", b"Be ", b"br", b"ief.", b"</s>", b"Wie hei", b"\xc3", b"\x9ft ID-7", b"?"]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Wie heißt ID-7?"}]},
]


def tokens_of(value: Any, messages: Any = MESSAGES) -> list[int]:
    return Protection.parse(value).indices(len(PIECES), lambda: PIECES, messages).tolist()


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, []),
        ("system", [1, 2, 3]),
        ("tools", [0, 1, 2, 3, 4]),
        ("question", [5, 6, 7, 8]),
        (["system", "question"], [1, 2, 3, 5, 6, 7, 8]),
        ((2, 4), [2, 3]),
        ((-2, 100), [7, 8]),
        ([(0, 1), (0, 2)], [0, 1]),
        (re.compile("rief"), [2, 3]),
        (re.compile("ß"), [6, 7]),
        (re.compile(r"ID-\d"), [7]),
        (re.compile("nowhere"), []),
    ],
)
def test_tokens_of_a_protection(value, expected):
    assert tokens_of(value) == expected


def test_roles_mean_nothing_outside_a_chat():
    assert tokens_of(["system", (0, 1)], None) == [0]


def test_the_last_user_message_is_the_question():
    """Also where an earlier message has the same words."""
    pieces = [b"Why?", b"No.", b"Why?", b"!"]
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]
    protection = Protection.parse("question")
    assert protection.indices(4, lambda: pieces, [*messages, messages[0]]).tolist() == [2]


def chat_of(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    "role, pieces, messages, expected",
    [
        ("tools", [b"use this", b" {json}", b"hi"], chat_of(("system", "use this {json}"), ("user", "hi")), [0, 1]),
        ("tools", [b"{this}", b"hi"], chat_of(("user", "hi")), [0]),
        ("question", [b"time", b"the time", b" is 5"], chat_of(("user", "time"), ("tool", "the time is 5")), [0]),
        ("system", [b"A", b"b", b"A"], chat_of(("system", "A"), ("user", "b"), ("system", "A")), [0, 2]),
        ("system", [b"be br", b"ief"], chat_of(("system", ""), ("user", "ief")), []),
        ("question", [b"S", b"A", b"B"], chat_of(("user", "A"), ("system", "S"), ("user", "B")), [2]),
        ("tools", [b"S", b"A", b"B"], chat_of(("user", "A"), ("system", "S"), ("user", "B")), [0]),
        ("system", [b"S", b"A"], chat_of(("user", "A"), ("system", "S")), [0]),
        ("system", [b"A", b"x", b"B"], chat_of(("system", "A"), ("assistant", "left out"), ("system", "B")), [0, 2]),
    ],
)
def test_words_that_stand_elsewhere_too(role, pieces, messages, expected):
    """Messages are found in their order, not by their words alone."""
    assert Protection.parse(role).indices(len(pieces), lambda: pieces, messages).tolist() == expected


@pytest.mark.parametrize("pattern", ["z*", "(?=d)", ""])
def test_an_empty_match_protects_nothing(pattern):
    pieces = [b"ab", b"cd", b"e"]
    assert Protection.parse(re.compile(pattern)).indices(3, lambda: pieces, None).tolist() == []


def test_many_matches_in_a_long_text():
    """A megabyte is walked through once, not once for each match: that took minutes."""
    pieces = [" ß1".encode()] * 250_000
    started = time.process_time()
    found = Protection.parse(re.compile(r"\d")).indices(len(pieces), lambda: pieces, None)
    assert found.size == len(pieces)
    assert time.process_time() - started < 20


def test_a_message_that_the_template_changes_is_an_error():
    with pytest.raises(PromptError, match="system message to stand in the prompt as it was given"):
        tokens_of("system", [{"role": "system", "content": "Be long."}])


@pytest.mark.parametrize("value", ["user", 3, (1, 2.5), (1, 2, 3), re.compile(b"x"), [None], [["system"]], (True, 2)])
def test_unknown_protections_are_errors(value):
    with pytest.raises(OptionError, match="asl_protect: expected 'system', 'tools', 'question'"):
        Protection.parse(value)


def test_round_trip():
    value = ["system", (3, 5), re.compile("x")]
    assert Protection.parse(Protection.parse(value).to_list()) == Protection.parse(value)


NEWEST = StreamingLLM(n_sink=0, window=8)
"""keeps what is protected and the newest: which tokens those are can be said beforehand"""


def kept_positions(llm: Any) -> list[int]:
    """Of the prompt, in the cells."""
    n_prompt = llm.last_prefill.prompt_tokens
    return sorted(int(pos) for pos in cells(llm).positions if pos < n_prompt)


def test_spans_are_kept_and_count_towards_the_budget(make):
    llm = make(asl_budget=60, asl_policy=NEWEST, asl_protect=[(10, 20), (40, 50)])
    complete(llm, prompt(200))
    assert kept_positions(llm) == [*range(10, 20), *range(40, 50), *range(160, 200)]
    assert llm.last_prefill.protected_tokens == 20 and llm.last_prefill.kept_tokens == 60


@pytest.mark.parametrize("stream", [False, True])
def test_roles_of_a_chat(make, stream):
    """A stream prefills after create_chat_completion has returned, and still knows the messages."""
    llm = make(asl_budget=120, asl_policy=SETTLES, asl_protect=["system", "question"])
    question = "What did the keeper write?"
    messages = [{"role": "system", "content": "Answer in one word."}, *chat(TEXT), *chat(question)]
    answer = llm.create_chat_completion(messages, max_tokens=2, temperature=0.0, stream=stream)
    if stream:
        list(answer)
    n_prompt = llm.last_prefill.prompt_tokens
    pieces = [llm.detokenize([token], special=True) for token in llm._input_ids[:n_prompt].tolist()]
    wanted = Protection.parse(["system", "question"]).indices(n_prompt, lambda: pieces, messages)
    assert llm.last_prefill.protected_tokens == len(wanted) > 20
    assert np.isin(wanted, llm.last_prefill.selected).all()
    kept = b"".join(pieces[i] for i in llm.last_prefill.selected)
    assert b"Answer in one word." in kept and question.encode() in kept


def test_messages_are_forgotten_after_the_chat(make):
    """A plain completion after a chat is not searched for the chat's messages."""
    llm = make(asl_budget=100, asl_protect="question")
    llm.create_chat_completion(chat(TEXT[:90]), max_tokens=1)
    complete(llm, prompt(300))
    assert llm.last_prefill.protected_tokens == 0 and llm.last_prefill.pruned


def test_patterns(make):
    llm = make(asl_budget=150, asl_policy=NEWEST, asl_protect=re.compile("day 3 the keeper"))
    llm.create_completion(TEXT, max_tokens=1)
    assert llm.last_prefill.pruned
    kept = kept_positions(llm)
    assert b"day 3 the keeper" in llm.detokenize([int(llm._input_ids[pos]) for pos in kept[:-100]])
    assert 5 < llm.last_prefill.protected_tokens < 30


def test_more_than_the_budget_is_an_error_and_leaves_llama_usable(make):
    llm = make(asl_budget=60, asl_policy=NEWEST, asl_protect=(0, 100))
    with pytest.raises((OptionError, ContextFullError), match="100 protected tokens"):
        complete(llm, prompt(300))
    complete(llm, prompt(40))
    assert llm.last_prefill.prompt_tokens == 40
