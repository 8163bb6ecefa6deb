"""JSON, function calling and chat handlers over a pruned prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerNotFoundException

from harness import llama_cpp, prompt
from surface_cases import LAYERED, PROMPT, PRUNED, UNPRUNED, add_readable_bias
from surface_chat_cases import CHOICE, FUNCTION, LONG, SCHEMA, TOOLS, WORKS, answer, completed, text_of
from tiny_gguf import FIRST_BYTE
from tiny_llama import chat

pytestmark = pytest.mark.usefixtures("short_prompts_count")

CLOSE = {FIRST_BYTE + ord("}"): 100.0}


@pytest.mark.parametrize("budget", [PRUNED, UNPRUNED, LAYERED], ids=["pruned", "unpruned", "layered"])
@pytest.mark.parametrize("stream", [False, True])
def test_json(make, budget, stream):
    """A schema is met; cut by max_tokens the text is a beginning of what would meet it."""
    llm = make(**budget)

    def text(**arguments: Any) -> str:
        found = completed(llm, stream=stream, **{**LONG, **arguments})
        return (
            "".join(text_of(part["choices"][0]["delta"]) for part in found)
            if stream
            else text_of(found["choices"][0]["message"])
        )

    form = {"type": "json_object", "schema": SCHEMA}
    whole = text(response_format=form)
    found = json.loads(whole)
    assert found["day"] in ("monday", "sunday") and isinstance(found["rain"], bool) and len(found) == 2
    cut = text(response_format=form, max_tokens=5)
    assert whole.startswith(cut) and 0 < len(cut) < len(whole)
    assert json.loads(text(response_format={"type": "json_object"}, logit_bias=CLOSE)) == {}
    assert llm.last_prefill.pruned == (budget is PRUNED)


def test_the_fields_of_a_function_call(make):
    llm = make(**PRUNED)
    choice, _, _ = answer(llm, **WORKS["tools"])
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "report" and json.loads(call["function"]["arguments"])["day"]
    assert choice["message"]["function_call"] == call["function"]
    with pytest.raises(ValueError, match="Tool choice 'none of them' not found"):
        completed(llm, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "none of them"}})


def prefer(text: str) -> llama_cpp.LogitsProcessorList:
    """A processor after which these characters win, the first ones first, wherever a grammar allows them."""
    bias = {FIRST_BYTE + ord(char): 100.0 * (len(text) - i) for i, char in enumerate(text)}

    def process(ids: Any, scores: Any) -> Any:
        result = scores.copy()
        for token, plus in bias.items():
            result[token] += plus
        return result

    return llama_cpp.LogitsProcessorList([process])


READABLE = llama_cpp.LogitsProcessorList([add_readable_bias])

CALLING: dict[str, dict[str, Any]] = {
    "no tools": {},
    "none": {"tools": TOOLS, "tool_choice": "none"},
    "one": {"tools": TOOLS, "tool_choice": CHOICE, "logits_processor": None},
    "function": {"functions": [FUNCTION], "function_call": {"name": "report"}, "logits_processor": None},
    "auto, a function": {"tools": TOOLS[:1], "tool_choice": "auto", "logits_processor": prefer("<f}")},
    "auto, a message": {"tools": TOOLS, "tool_choice": "auto", "logits_processor": prefer("<m")},
    "json": {"response_format": {"type": "json_object", "schema": SCHEMA}, "logits_processor": None},
}


@pytest.mark.long
@pytest.mark.parametrize("name", CALLING)
def test_chatml_function_calling(make, stock, name):
    """A handler that renders its own prompts, asks several times, and passes no seed or bias on."""
    arguments = {"messages": chat(PROMPT), "max_tokens": 40, "temperature": 0.0, "logits_processor": READABLE}
    arguments |= CALLING[name]
    found = []
    for make_one, options in ((stock, {}), (make, UNPRUNED), (make, LAYERED), (make, PRUNED)):
        llm = make_one(chat_format="chatml-function-calling", **options)
        whole = llm.create_chat_completion(**arguments)
        (choice,) = whole["choices"]
        for tool_call in choice["message"].get("tool_calls", []):
            del tool_call["id"]
        found.append((choice, whole["usage"]))
        if name == "auto, a function":
            with pytest.raises(ValueError, match="Automatic streaming tool choice is not supported"):
                llm.create_chat_completion(**arguments, stream=True)
            continue
        parts = [part["choices"][0] for part in llm.create_chat_completion(**arguments, stream=True)]
        assert "".join(text_of(part["delta"]) for part in parts) == text_of(choice["message"])
    assert found[0] == found[1] == found[2]
    assert llm.last_prefill.pruned
    assert (text_of(found[3][0]["message"]) == "") == (name == "auto, a message")  # it prefers the end at once
    if name in ("one", "function", "auto, a function"):
        (tool_call,) = found[3][0]["message"]["tool_calls"]
        assert tool_call["function"]["name"] == "report" and json.loads(tool_call["function"]["arguments"])["day"]


def test_a_chat_handler_that_asks_for_a_completion(make):
    """It gets this object and the messages; what it asks for is pruned, and protection knows the messages."""
    seen = []

    def handler(*, llama: Any, messages: list[dict[str, str]], **kwargs: Any) -> Any:
        seen.append((llama, messages, kwargs["max_tokens"]))
        return llama.create_completion(messages[0]["content"], max_tokens=kwargs["max_tokens"], temperature=0.0)

    llm = make(chat_handler=handler, asl_protect="question", **PRUNED)
    found = llm.create_chat_completion([*chat(PROMPT), *chat("weather")], max_tokens=4)
    assert seen == [(llm, [*chat(PROMPT), *chat("weather")], 4)] and llm.last_prefill.pruned
    assert found["usage"]["completion_tokens"] in range(4, 8)  # up to the end of a character


def test_a_chat_handler_that_evaluates_by_itself(make, stock):
    """As multimodal handlers do: eval prunes nothing, and the completion goes on from what was evaluated."""

    def handler(*, llama: Any, **kwargs: Any) -> Any:
        tokens = prompt(300)
        llama.reset()
        llama.eval(tokens[:200])
        llama.eval(tokens[200:])
        return llama.create_completion(llama.input_ids[: llama.n_tokens].tolist(), max_tokens=6, temperature=0.0)

    ours, theirs = make(chat_handler=handler, **PRUNED), stock(chat_handler=handler)
    for _ in range(2):
        found = [llm.create_chat_completion(chat("unused"))["choices"] for llm in (ours, theirs)]
        assert found[0] == found[1]
        assert not ours.last_prefill.pruned and ours.last_prefill.reused_tokens == 300


def test_an_unknown_chat_format_is_the_parents_error(make, stock):
    for llm in (make(chat_format="no such format", **PRUNED), stock(chat_format="no such format")):
        with pytest.raises(LlamaChatCompletionHandlerNotFoundException, match="Invalid chat handler"):
            llm.create_chat_completion(chat(PROMPT))
