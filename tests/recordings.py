"""What agents send: a system prompt with tools, and turns that grow by tool results, as OpenAI's and Anthropic's clients put them."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = (
    "request handler returns error timeout config value test passed build module import function class file line server "
    "client token cache key user data index query result status code path value string number list check update version"
).split()

SYSTEM = "You are a careful assistant that repairs a program. Use the tools. Answer in one sentence."

TOOL = {
    "name": "read_file",
    "description": "Reads a file of the project",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}


def result(rng: random.Random, n_words: int) -> str:
    """A file's text."""
    lines = [" ".join(rng.choices(WORDS, k=10)) for _ in range(n_words // 10)]
    return "\n".join(f"{i}: {line}" for i, line in enumerate(lines))


def turns(n_turns: int, sizes: tuple[int, int], seed: int = 5) -> list[tuple[str, str, str]]:
    """(path, result, said before) of each call."""
    rng = random.Random(seed)
    return [
        (f"src/part{i}.py", result(rng, rng.randrange(*sizes)), f"I look at part {i} of the program.")
        for i in range(n_turns)
    ]


def openai_requests(calls: list[tuple[str, str, str]], system: str = SYSTEM) -> list[dict[str, Any]]:
    """The body of each request of a conversation."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": system},
        {"role": "user", "content": "Why does the build fail?"},
    ]
    bodies = [{"messages": list(messages)}]
    for i, (path, text, said) in enumerate(calls):
        arguments = json.dumps({"path": path})
        call = {"id": f"call_{i}", "type": "function", "function": {"name": TOOL["name"], "arguments": arguments}}
        messages += [
            {"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{i}", "content": text},
        ]
        bodies.append({"messages": list(messages)})
    return [{**body, "tools": [{"type": "function", "function": TOOL}]} for body in bodies]


def anthropic_requests(calls: list[tuple[str, str, str]], system: str = SYSTEM) -> list[dict[str, Any]]:
    """The same for /v1/messages."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Why does the build fail?"}]
    bodies = [list(messages)]
    for i, (path, text, said) in enumerate(calls):
        use = {"type": "tool_use", "id": f"call_{i}", "name": TOOL["name"], "input": {"path": path}}
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": said}, use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"call_{i}", "content": text}]},
        ]
        bodies.append(list(messages))
    tool = {"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}
    return [{"system": system, "messages": body, "tools": [tool]} for body in bodies]


TITLE = {"messages": [{"role": "user", "content": "Write a title of three words for a chat about a build that fails."}]}
"""what clients send in between"""
