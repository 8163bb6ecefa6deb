"""Arguments of another type than is expected: a typed error at the call, and the object answers on."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf import OptionError, OptionTypeError, PromptError
from harness import prompt
from tiny_llama import greedy

NEXT = prompt(320, seed=1)


@pytest.mark.parametrize(
    "given",
    [None, 5, 1.5, {"role": "user"}, b"text", iter([5, 6]), object(), np.array(1)],
    ids=lambda given: type(given).__name__,
)
def test_a_prefill_of_no_prompt(make, given):
    with pytest.raises(OptionTypeError, match="prompt: expected a text, token ids or the messages of a chat, got"):
        make(asl_budget=0.2).prefill(given)


def test_paths_of_no_file(make):
    llm = make(asl_budget=0.2)
    llm.prefill(NEXT)
    for call in (llm.save_prompt, llm.load_prompt):
        for given in (None, 5, b"prompt", object()):
            with pytest.raises(OptionTypeError, match="path: expected a str or a Path, got"):
                call(given)
        with pytest.raises(OptionError, match="path: expected the path of a file, got"):
            call("a\0b")


WRONG = {
    "set_progress": (lambda llm, given: llm.set_progress(given), OptionError, "asl_progress: expected a callable"),
    "set_cache": (lambda llm, given: llm.set_cache(given), OptionTypeError, "cache: expected a LlamaRAMCache"),
    "eval": (lambda llm, given: llm.eval(given), PromptError, "expected token ids, got"),
    "generate": (lambda llm, given: llm.generate(given), PromptError, "expected token ids, got"),
    "detokenize": (lambda llm, given: llm.detokenize(given), PromptError, "expected token ids, got"),
    "chat": (
        lambda llm, given: llm.create_chat_completion(given),
        OptionTypeError,
        "messages: expected a list of dicts",
    ),
    "response_format": (
        lambda llm, given: llm.create_chat_completion([{"role": "user", "content": "a"}], response_format=given),
        OptionTypeError,
        "response_format: expected a dict such as",
    ),
    "n_tokens": (lambda llm, given: setattr(llm, "n_tokens", given), OptionTypeError, "n_tokens: expected an integer"),
    "input_ids": (
        lambda llm, given: setattr(llm, "input_ids", given),
        OptionTypeError,
        "input_ids: expected an array of n_ctx",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("budget", [0.2, None])
def test_values_of_another_type(make, name, budget):
    """Named at the call, not by whoever meets them later."""
    llm = make(asl_budget=budget)
    call, error, message = WRONG[name]
    for given in (1.5, object(), *([] if name == "set_cache" else [np.array(1.5)])):
        with pytest.raises(error, match=message):
            call(llm, given)
    assert greedy(llm, NEXT, 2) == greedy(make(asl_budget=budget), NEXT, 2)


def test_messages_that_are_no_dicts(make):
    for given in ([5], [{"role": "user", "content": "x"}, 5], "text", [None]):
        with pytest.raises(OptionTypeError, match="messages: expected a list of dicts with role and content, got"):
            make(asl_budget=0.2).create_chat_completion(given)


def test_a_negative_number_of_tokens_and_a_stop_of_no_unicode(make):
    llm = make(asl_budget=0.2)
    with pytest.raises(OptionError, match="n_tokens: expected an integer from 0 to"):
        llm.n_tokens = -1
    with pytest.raises(PromptError, match="stop: expected a text of Unicode characters"):
        llm.create_completion("a", stop="\ud800")


def test_no_criteria_at_all(make):
    """An empty tuple is as good as an empty list."""
    llm = make(asl_budget=0.2)
    answers = [
        llm.create_completion("a", max_tokens=2, temperature=0.0, stopping_criteria=given) for given in (None, (), [])
    ]
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]
