"""Arguments to try every keyword of create_chat_completion with."""

from __future__ import annotations

from typing import Any

from asl_gguf.drop_in import surface
from surface_cases import PROMPT
from surface_cases import WORKS as COMPLETION
from tiny_llama import READABLE, chat

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
