"""What the parent gets wrong about a completion's arguments is right here, with a budget and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asl_gguf import OptionError, PromptError
from asl_gguf.drop_in.completion import end_at_first_stop
from harness import llama_cpp, prompt
from spelled import SPELLED_AFTER, spelling
from tiny_gguf import FIRST_BYTE
from tiny_llama import READABLE, chat, complete, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
TOKENS = SPELLED_AFTER
with_budget = pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])


@with_budget
def test_a_bias_beside_other_processors(make, options):
    """Both take part; the caller's list is as it was. The parent loses both, and adds to the list."""
    seen = []

    def forbid(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(len(ids))
        scores[FIRST_BYTE + ord("!")] = -100.0
        return scores

    llm, processors = make(**options), llama_cpp.LogitsProcessorList([forbid])
    wanted = {FIRST_BYTE + ord("!"): 50.0, FIRST_BYTE + ord("?"): 100.0}
    found = complete(llm, TOKENS, 4, logits_processor=processors, logit_bias=wanted)
    assert found["choices"][0]["text"] == "????" and len(seen) == 4 and len(processors) == 1
    stream = complete(llm, TOKENS, 4, logits_processor=processors, logit_bias=wanted, stream=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == "????" and len(processors) == 1


@with_budget
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_no_grammar_can_be_made_of(make, options, stream):
    """The parent takes any JSON then, without a word."""
    llm = make(**options)
    for schema in ({"$ref": "#/definitions/none"}, {"type": "of nothing"}, {"$ref": 5}):
        form = {"type": "json_object", "schema": schema}
        with pytest.raises(
            OptionError, match="response_format: expected a JSON schema that llama_cpp can make a grammar"
        ):
            llm.create_chat_completion(chat("Hello"), response_format=form, max_tokens=4, stream=stream)
    for form in ({"type": "json_object"}, {"type": "text"}, None):
        assert llm.create_chat_completion(chat("Hello"), response_format=form, max_tokens=2, stream=stream)


@with_budget
def test_token_ids_that_are_none(make, options):
    llm = make(**options)
    for tokens in ([True, 70], [70, False], [np.True_, 70], [70.0], ["70"], [None]):
        for call in (llm.create_completion, llm.generate):
            with pytest.raises(PromptError, match="expected integers as token ids, got "):
                call(tokens)
    assert greedy(llm, np.array(TOKENS), 2) == greedy(llm, TOKENS, 2)


def test_a_seed_of_0_is_a_seed(make):
    """The parent takes it for none, which is the largest one."""

    def sampled(seed: int) -> list[str]:
        llm = make(**PRUNED, seed=seed)
        return [complete(llm, TOKENS, 12, temperature=2.0)["choices"][0]["text"] for _ in range(2)]

    zero = sampled(0)
    assert zero == sampled(0) and zero not in (sampled(1), sampled(llama_cpp.LLAMA_DEFAULT_SEED))


STOPS = {
    "one after the other": (b"seven", ["v", "e"], "s"),
    "in each other": (b"xaby", ["b", "ab"], "x"),
    "the first of the list": (b"seven", ["e", "v"], "s"),
    "one alone": (b"seven", ["v", "z"], "se"),
    "none": (b"six", ["v", "e"], "six"),
    "of several bytes": ("é雪é".encode(), ["雪", "é"], ""),
}


@pytest.mark.parametrize("echo, suffix", [("", ""), ("six ", ""), ("", " end"), ("e ", " v")])
@pytest.mark.parametrize("whole, stop, expected", STOPS.values(), ids=STOPS)
def test_the_first_stop_string_ends_the_text(whole, stop, expected, echo, suffix):
    text = whole.decode()
    occurring = [one for one in stop if one in text]
    parents = text[: text.index(occurring[0])] if occurring else text
    choice: dict[str, Any] = {"text": echo + parents + suffix}
    end_at_first_stop(choice, whole, stop, suffix)
    assert choice["text"] == echo + expected + suffix


@pytest.mark.long
@with_budget
def test_plain_and_streamed_answers_stop_alike(make, options):
    llm, letters = make(**options), [chr(i) for i in range(ord("a"), ord("z"))]
    n_stopped = 0
    for seed in range(6):
        tokens = prompt(100, seed=seed)
        whole = complete(llm, tokens, 12)["choices"][0]["text"]
        pairs = [whole[i : i + 2] for i in range(1, len(whole) - 2)]
        for stop in (pairs[::-1], [pair[1] for pair in pairs][::-1], letters):
            plain = complete(llm, tokens, 12, stop=stop)["choices"][0]
            chunks = list(complete(llm, tokens, 12, stop=stop, stream=True))
            streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
            assert plain["text"] == streamed and not any(one in streamed for one in stop)
            n_stopped += plain["finish_reason"] == "stop"
    assert n_stopped > 6


def test_they_stop_alike_with_an_echo(make):
    llm = make(**PRUNED)
    text = "On day 3 the keeper wrote. " * 12
    found = llm.create_completion(text, max_tokens=12, temperature=0.0, logit_bias=READABLE, echo=True)
    answer = found["choices"][0]["text"].removeprefix(text)
    stop = [answer[5:7], answer[1:3]]
    cut = llm.create_completion(text, max_tokens=12, temperature=0.0, logit_bias=READABLE, echo=True, stop=stop)
    assert cut["choices"][0]["text"] == text + answer[: min(map(answer.index, stop))]


@with_budget
@pytest.mark.parametrize(
    "text", ["naïve 雪雪!", "雪", "aé雪é", "é" * 9, "\U0001f600\U0001f600x", "plain text", "xé\xe9y"]
)
def test_a_stream_has_the_characters_of_the_plain_answer(make, options, text):
    """Those of several tokens too, when they were held back as the beginning of a stop string."""
    llm, data = make(**options), text.encode()
    for stop in ([], [text + "?"], [text[-2:] + "??", text[-1:] + "!?"], [text[len(text) // 2 :]], text[-1:]):
        given = {"logits_processor": spelling(data), "logit_bias": None, "stop": stop}
        plain = complete(llm, TOKENS, len(data), **given)["choices"][0]
        chunks = list(complete(llm, TOKENS, len(data), stream=True, **given))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == plain["text"], stop
        assert chunks[-1]["choices"][0]["finish_reason"] == plain["finish_reason"]
        if not stop:
            assert plain["text"] == text and len(chunks) > len(text) // 2


@with_budget
@pytest.mark.parametrize("data, text", [(b"\xe2", ""), (b"ok\xe2", "ok"), (b"ok \xf0", "ok ")])
def test_an_answer_within_a_character_ends(make, options, data, text):
    """The parent goes on to the end of the context, and gives out no text at all."""
    llm = make(**options)
    given = {"logits_processor": spelling(data), "logit_bias": None}
    plain = complete(llm, TOKENS, 5, **given)
    assert plain["choices"][0]["text"] == text and plain["choices"][0]["finish_reason"] == "length"
    assert 5 <= plain["usage"]["completion_tokens"] <= 8
    parts = list(complete(llm, TOKENS, 5, stream=True, **given))
    assert "".join(part["choices"][0]["text"] for part in parts) == text
