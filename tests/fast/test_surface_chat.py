"""The keywords of create_chat_completion; function calling and chat handlers: test_surface_tools.py."""

from __future__ import annotations

from typing import Any

import pytest
from test_llama import READABLE, chat
from test_surface import LAYERED, PROMPT, PRUNED, UNPRUNED
from test_surface_completion import WORKS as COMPLETION
from test_surface_completion import make_shared  # noqa: F401

from asl_gguf.drop_in import surface
from harness import llama_cpp

SCHEMA = {
    "type": "object",
    "properties": {"day": {"enum": ["monday", "sunday"]}, "rain": {"type": "boolean"}},
    "required": ["day", "rain"],
}
"""few documents fit it, all of them short: a random model ends each"""
FUNCTION = {"name": "report", "description": "Reports.", "parameters": SCHEMA}
OTHER = {"name": "retreat", "description": "Leaves.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": function} for function in (FUNCTION, OTHER)]
CHOICE = {"type": "function", "function": {"name": "report"}}
BASE = {"messages": chat(PROMPT), "max_tokens": 8, "seed": 3, "logit_bias": READABLE}
LONG = {"max_tokens": 80, "logit_bias": None}

WORKS: dict[str, dict[str, Any]] = {
    **{name: COMPLETION[name] for name in surface.KEYWORDS["create_chat_completion"] if name in COMPLETION},
    "messages": {"messages": [{"role": "system", "content": "Be brief."}, *chat(PROMPT)]},
    "functions": {"functions": [FUNCTION], "function_call": {"name": "report"}, **LONG},
    "function_call": {"functions": [FUNCTION, OTHER], "function_call": {"name": "retreat"}, **LONG},
    "tools": {"tools": TOOLS, "tool_choice": CHOICE, **LONG},
    "tool_choice": {"tools": TOOLS, "tool_choice": "none"},
    "response_format": {"response_format": {"type": "json_object", "schema": SCHEMA}, **LONG},
}
NO_EFFECT = {"tfs_z", "stream", "tool_choice"}
"""the template of the tiny model has no place for tools that are not called"""


def completed(llm: Any, **arguments: Any) -> Any:
    if {"logits_processor", "grammar"} & arguments.keys():
        arguments = {"logit_bias": None, **arguments}
    return llm.create_chat_completion(**{**BASE, **arguments})


def answer(llm: Any, **arguments: Any) -> Any:
    """Without the random id of a tool call."""
    found = completed(llm, **arguments)
    (choice,) = found["choices"]
    for tool_call in choice["message"].get("tool_calls", []):
        del tool_call["id"]
    return choice, found["usage"], found["model"]


def text_of(message: dict[str, Any]) -> str:
    """What the model wrote, as content or as arguments of the first tool."""
    calls = message.get("tool_calls")
    return calls[0]["function"]["arguments"] if calls else message.get("content") or ""


@pytest.fixture(scope="module")
def plain(shared) -> Any:
    """The parent's answer to BASE."""
    return answer(shared(llama_cpp.Llama))


def test_every_keyword_that_works_is_tried():
    rows = surface.KEYWORDS["create_chat_completion"]
    assert {name for name, row in rows.items() if row.status == surface.WORKS} == set(WORKS)


@pytest.mark.parametrize("name", WORKS)
def test_a_keyword_with_nothing_pruned(shared, plain, name):
    theirs = answer(shared(llama_cpp.Llama), **WORKS[name])
    assert (theirs != plain) == (name not in NO_EFFECT)
    for options in (UNPRUNED, LAYERED):
        llm = shared(**options)
        assert answer(llm, **WORKS[name]) == theirs and not llm.last_prefill.pruned


@pytest.mark.parametrize("name", WORKS)
def test_a_keyword_with_a_pruned_prompt(shared, name):
    llm = shared(**PRUNED)
    choice, usage, _ = answer(llm, **WORKS[name])
    report = llm.last_prefill
    assert report.pruned and report.kept_tokens == report.prompt_tokens * 2 // 5 == usage["prompt_tokens"] * 2 // 5
    assert usage["total_tokens"] == report.prompt_tokens + usage["completion_tokens"]
    parts = [part["choices"][0] for part in completed(llm, stream=True, **WORKS[name])]
    streamed, whole = "".join(text_of(part["delta"]) for part in parts), text_of(choice["message"])
    # of several stop strings the parent cuts a whole answer at the first in the list, a stream at the first in the text
    assert streamed == whole or (name == "stop" and whole.startswith(streamed))
    # a streamed function call always ends with "tool_calls", in the parent too
    assert parts[-1]["finish_reason"] in (choice["finish_reason"], "tool_calls")
