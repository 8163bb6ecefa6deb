"""Log-probabilities of an answer's tokens without logits_all: the parent's with nothing pruned, and those of a pruned prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asl_gguf import OptionError, OptionTypeError
from asl_gguf.drop_in.logprobs import AnswerLogprobs
from harness import llama_cpp, prompt
from spelled import SPELLED_AFTER, spelling
from surface_cases import PROMPT, UNPRUNED
from tiny_llama import chat, complete, logits

pytestmark = pytest.mark.usefixtures("short_prompts_count")

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
GREEDY = {"max_tokens": 6, "temperature": 0.0, "logprobs": 3}


def joined(parts: list[Any]) -> dict[str, list[Any]]:
    """Those of all chunks of a stream."""
    found = [part["choices"][0]["logprobs"] for part in parts]
    keys = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    return {key: [one for each in found if each for one in each[key]] for key in keys}


def rounded(found: Any) -> Any:
    """Numbers that compare up to rounding: with logits_all the output head is a product of many rows, summed in another order."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return pytest.approx(float(found), abs=1e-4) if isinstance(found, (float, np.floating)) else found


@pytest.mark.parametrize("n_top", [0, 1, 5, 10**6])
@pytest.mark.parametrize("given", [PROMPT, prompt(150)], ids=["text", "tokens"])
def test_they_are_the_parents_with_nothing_pruned(make, stock, n_top, given):
    options = {**GREEDY, "logprobs": n_top}
    theirs = stock(logits_all=True).create_completion(given, **options)
    ours = make(**UNPRUNED).create_completion(given, **options)
    assert ours["choices"] == rounded(theirs["choices"]) and len(ours["choices"][0]["logprobs"]["tokens"]) == 6


@pytest.mark.parametrize("seed", range(4))
def test_those_of_a_pruned_prompt_are_of_its_logits(make, seed):
    """Read off the context's logits, step by step, in another object."""
    tokens = prompt(150, seed=seed)
    llm, other = make(**PRUNED), make(**PRUNED)
    answer = llm.create_completion(tokens, **GREEDY)
    assert llm.last_prefill.pruned
    found, expected = answer["choices"][0]["logprobs"], []
    for _ in zip(found["tokens"], other.generate(tokens, temp=0.0)):
        values = logits(other).astype(np.float64)
        expected.append(float(values.max() - np.log(np.exp(values - values.max()).sum()) - values.max()))
    assert len(expected) >= 6  # a character that is not whole may take more
    np.testing.assert_allclose(found["token_logprobs"], expected, atol=1e-5)
    for top, text, logprob in zip(found["top_logprobs"], found["tokens"], found["token_logprobs"]):
        assert top[text] == logprob == max(top.values())


def test_an_answer_is_the_same_with_them(make):
    llm = make(**PRUNED)
    for stream in (False, True):
        texts = []
        for options in (GREEDY, {**GREEDY, "logprobs": None}):
            parts = llm.create_completion(PROMPT, stream=stream, **options)
            texts.append("".join(part["choices"][0]["text"] for part in (parts if stream else [parts])))
        assert texts[0] == texts[1]


@pytest.mark.parametrize("text", ["plain text", "naïve 雪雪!", "\U0001f600x"])
def test_a_stream_has_those_of_the_plain_answer(make, text):
    llm, data = make(**PRUNED), text.encode()
    given = {"logits_processor": spelling(data), "logit_bias": None, "logprobs": 2}
    plain = complete(llm, SPELLED_AFTER, len(data), **given)["choices"][0]["logprobs"]
    parts = list(complete(llm, SPELLED_AFTER, len(data), stream=True, **given))
    assert joined(parts) == plain and len(plain["tokens"]) == len(data)
    for part in parts:  # whose text it is
        found = part["choices"][0]
        assert not found["logprobs"] or len(found["logprobs"]["tokens"]) == len(found["text"].encode())


def test_a_stop_string_ends_them(make):
    llm = make(**PRUNED)
    given = {"logits_processor": spelling(b"one, two"), "logit_bias": None, "logprobs": 2, "stop": [", "]}
    parts = list(complete(llm, SPELLED_AFTER, 8, stream=True, **given))
    assert joined(parts)["tokens"] == ["o", "n", "e"] and parts[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "data, stop",
    [
        (b"ab\xff, two", [", "]),
        (b"a\x80\x80b\x80c", ["c"]),
        (b"\xe2\x80b, ", ["b"]),
        (b"\xf0\x9f\x98\x80\xffab", ["ab"]),
        ("a…ü".encode(), ["ü"]),
        ("\xe2…".encode("latin-1", "replace"), ["?"]),
        (b"a\xe2", []),
        (b"\xff\xff", ["x"]),
    ],
)
def test_streams_of_invalid_characters(make, data, stop):
    """Bytes that are no character have no text; their tokens come where they stand, and none after the stop string."""
    llm = make(**PRUNED)
    given = {"logits_processor": spelling(data), "logit_bias": None, "logprobs": 2, "stop": stop}
    plain = complete(llm, SPELLED_AFTER, len(data), **given)["choices"][0]
    parts = list(complete(llm, SPELLED_AFTER, len(data), stream=True, **given))
    assert joined(parts) == plain["logprobs"]
    assert "".join(part["choices"][0]["text"] for part in parts) == plain["text"]
    assert parts[-1]["choices"][0]["finish_reason"] == plain["finish_reason"]
    end = data.index(stop[0].encode()) if plain["finish_reason"] == "stop" else len(plain["logprobs"]["tokens"])
    assert len(plain["logprobs"]["tokens"]) == end


@pytest.mark.parametrize("stream", [False, True])
def test_chats(make, stock, stream):
    options = {"max_tokens": 3, "temperature": 0.0, "logprobs": True, "top_logprobs": 2, "stream": stream}
    found = []
    for llm in (make(**UNPRUNED), stock(logits_all=True)):
        parts = llm.create_chat_completion(chat(PROMPT), **options)
        choices = [part["choices"][0]["logprobs"] for part in (parts if stream else [parts])]
        found.append([one for each in choices if each for one in each["content"]])
    assert found[0] == rounded(found[1]) and len(found[0]) == 3
    pruned = make(**PRUNED)
    parts = pruned.create_chat_completion(chat(PROMPT), **options)
    assert list(parts) and pruned.last_prefill.pruned


def test_what_is_refused(make, stock):
    llm = make(**PRUNED)
    for stream in (False, True):
        with pytest.raises(OptionError, match="logprobs: expected echo=False beside them.*logits_all=True"):
            llm.create_completion(PROMPT, echo=True, stream=stream, **GREEDY)
        for wrong in (True, -1, 2.5, "3"):
            with pytest.raises(OptionError, match="logprobs: expected a number of tokens"):
                llm.create_completion(PROMPT, stream=stream, logprobs=wrong)
    for other in (make(), stock()):  # without a budget the parent's error
        with pytest.raises(ValueError, match="logprobs is not supported for models created with logits_all=False"):
            other.create_completion(PROMPT, **GREEDY)


def test_equals_come_in_the_parents_order():
    noted = AnswerLogprobs(
        3, lambda tokens, before: bytes(tokens), lambda token: False, lambda: np.float32([1, 2, 2, 0, 2])
    )
    list(noted.noting(token for token in [1]))
    assert [token for token, _ in noted._noted[0].likeliest] == [4, 2, 1]


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_several_answers_are_refused_at_once(make, options):
    llm = make(**options)
    for call in (llm.create_completion, llm, lambda _, **given: llm.create_chat_completion(chat("Hello"), **given)):
        for given in ({"n": 2}, {"best_of": 2}, {"n": 1, "stream": True}):
            with pytest.raises(
                OptionTypeError, match=": expected an argument of .*; ask once for each answer, with a seed"
            ):
                call(PROMPT, **given)
        with pytest.raises(OptionTypeError, match="temprature: expected an argument.*did you mean temperature"):
            call(PROMPT, temprature=0.0)
    assert llm.last_prefill is None and llama_cpp.Llama.create_completion is not type(llm).create_completion
