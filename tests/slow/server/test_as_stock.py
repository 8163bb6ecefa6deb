"""What the clients can ask for, each answered as llama.cpp's server answers it where nothing is pruned, and in form where much is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cut_gguf import cut
from serving import Server, serving

ROOT = Path(__file__).parents[3]
TEMPLATE = "build/py3-none-*/source/*/vendor/llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja"
"""thinks, and calls tools"""
ARGUMENTS = "--asl-dequant off --asl-room 256 -np 3 -c 6144 -t 1 -fa off --cache-ram 0 --seed 3 --slots".split()
ENGINES = {"stock": "--asl-budget none", "whole": "--asl-budget 1.0 --asl-min-prompt 0", "pruned": "--asl-budget 0.2"}
SHORT = [{"role": "user", "content": "Read the file named notes.txt."}]
LONG = [{"role": "user", "content": "Ships carry salt and wine to ports. " * 60 + "What do ships carry?"}]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string", "enum": ["notes.txt", "a.md"]}}, "required": ["path"]}  # fmt: skip
READ = {"type": "function", "function": {"name": "read_file", "description": "Reads", "parameters": SCHEMA}}
USE = {"name": "read_file", "description": "Reads a file", "input_schema": SCHEMA}
THOUGHTS = 'root ::= "<think>\\nwine" [a-z]{1,3} "\\n</think>\\n\\nsalt" [a-z]{1,3}'
PASSING = {"id", "created", "created_at", "completed_at", "asl", "timings", "item_id", "call_id", "tool_use_id", "system_fingerprint", "signature", "obfuscation"}  # fmt: skip
"""what differs from one run to the next"""

Ask = Callable[[Server, list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def servers(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    model = tmp_path_factory.mktemp("as_stock") / "cut.gguf"
    cut(smollm2, model, 6)
    arguments = [*ARGUMENTS, "--chat-template-file", str(next(ROOT.glob(TEMPLATE)))]
    stock, whole, pruned = (serving(model, *arguments, *options.split()) for options in ENGINES.values())
    with stock as first, whole as second, pruned as third:
        yield dict(zip(ENGINES, (first, second, third), strict=True))


def openai(server: Server) -> Any:
    import openai

    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def anthropic(server: Server) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0)


def said(answer: Any) -> Any:
    """An answer, or the events of one, as plain values."""
    if hasattr(answer, "model_dump"):
        return answer.model_dump()
    return [event.model_dump() for event in answer]


def chat(**more: Any) -> Ask:
    kwargs = {"model": "any", "max_tokens": 24, "temperature": 0, **more}
    return lambda server, messages: said(openai(server).chat.completions.create(messages=messages, **kwargs))


def completion(**more: Any) -> Ask:
    kwargs = {"model": "any", "max_tokens": 12, "temperature": 0, **more}
    return lambda server, messages: said(
        openai(server).completions.create(prompt=kwargs.pop("prompt", messages[0]["content"]), **kwargs)
    )


def response(**more: Any) -> Ask:
    kwargs = {"model": "any", "max_output_tokens": 24, "temperature": 0, **more}
    return lambda server, messages: said(openai(server).responses.create(input=messages, **kwargs))


def message(**more: Any) -> Ask:
    body = {"temperature": 0, **more.pop("extra_body", {})}
    kwargs = {"model": "any", "max_tokens": 24, "extra_body": body, **more}
    return lambda server, messages: said(anthropic(server).messages.create(messages=messages, **kwargs))


def counted(server: Server, messages: list[dict[str, Any]]) -> Any:
    return said(anthropic(server).messages.count_tokens(model="any", messages=messages))


FORMAT = {"type": "json_schema", "json_schema": {"name": "file", "schema": SCHEMA}}
STOPS = [" and", " I", "e", "\n"]  # what a few layers say
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}  # a few layers think without end
REQUIRED = {"tools": [READ], "tool_choice": "required", "max_tokens": 60, "extra_body": AT_ONCE}
ANY = {"tools": [USE], "tool_choice": {"type": "any"}, "max_tokens": 60, "extra_body": AT_ONCE}
FUNCTION = {"type": "function", "name": "read_file", "description": "Reads", "parameters": SCHEMA}
WAYS: dict[str, Ask] = {
    "chat": chat(),
    "chat, stream": chat(stream=True, stream_options={"include_usage": True}),
    "logprobs": chat(logprobs=True, top_logprobs=3),
    "logprobs, stream": chat(logprobs=True, top_logprobs=3, stream=True),
    "n": chat(n=2, seed=7, temperature=0.9),
    "n, stream": chat(n=2, seed=7, temperature=0.9, stream=True),
    "stop": chat(stop=STOPS),
    "logit bias": chat(logit_bias={"28": -100, "17": 5}),
    "schema": chat(response_format=FORMAT),
    "JSON": chat(response_format={"type": "json_object"}),
    "thoughts": chat(extra_body={"grammar": THOUGHTS}, max_tokens=60),
    "thoughts, stream": chat(extra_body={"grammar": THOUGHTS}, max_tokens=60, stream=True),
    "thoughts as text": chat(extra_body={"grammar": THOUGHTS, "reasoning_format": "none"}, max_tokens=60),
    "no thoughts": chat(extra_body=AT_ONCE),
    "tool": chat(**REQUIRED),
    "tool, stream": chat(**REQUIRED, stream=True),
    "tools if wanted": chat(tools=[READ], tool_choice="auto"),
    "tools, several": chat(**REQUIRED, parallel_tool_calls=True),
    "completion": completion(logprobs=3),
    "completion, n": completion(n=2, seed=5, temperature=0.9),
    "completion, stop": completion(stop=STOPS, stream=True),
    "response": response(),
    "response, stream": response(stream=True),
    "response, tool": response(tools=[FUNCTION], tool_choice="required", max_output_tokens=60, extra_body=AT_ONCE),
    "message": message(),
    "message, stop": message(stop_sequences=STOPS),
    "message, system": message(system=[{"type": "text", "text": "Be brief."}], stream=True),
    "message, tool": message(**ANY),
    "message, tool, stream": message(**ANY, stream=True),
    "message, counted": counted,
}


def same(one: Any, other: Any, path: str = "") -> None:
    """But for what differs from one run to the next, and the last digits of probabilities."""
    assert type(one) is type(other) or {type(one), type(other)} <= {int, float}, f"{path}: {one!r}, {other!r}"
    if isinstance(one, dict):
        assert set(one) - PASSING == set(other) - PASSING, path
        for name in set(one) - PASSING:
            same(one[name], other[name], f"{path}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), f"{path}: {one!r}, {other!r}"
        for i, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{path}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=0.02), path
    else:
        assert one == other, path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["short", "long"])
def test_nothing_pruned_answers_as_stock(servers, way, messages):
    same(WAYS[way](servers["whole"], messages), WAYS[way](servers["stock"], messages))


def texts(value: Any, name: str) -> list[str]:
    """Of all fields of this name, in order."""
    if isinstance(value, dict):
        own = [value[name]] if isinstance(value.get(name), str) else []
        return own + [text for part in value.values() for text in texts(part, name)]
    return [text for part in value for text in texts(part, name)] if isinstance(value, list) else []


@pytest.mark.parametrize("way", [way for way in WAYS if way != "message, counted"])
def test_pruned_answers_have_the_same_form(servers, way):
    """Keys and types of whole answers; of streams, the kinds of events."""
    pruned, stock = (WAYS[way](servers[name], LONG) for name in ("pruned", "stock"))
    if isinstance(stock, list):
        assert {event.get("type", event.get("object")) for event in pruned} == {
            event.get("type", event.get("object")) for event in stock
        }
        report = next(event["asl"] for event in reversed(pruned) if event.get("asl"))
    else:
        assert set(pruned) - PASSING == set(stock) - PASSING
        report = pruned["asl"]
    assert report["pruned"] and report["kept_tokens"] < report["prompt_tokens"] / 4


def test_pruned_answers_keep_to_what_was_asked(servers):
    server = servers["pruned"]
    assert json.loads(texts(WAYS["schema"](server, LONG), "content")[0])["path"] in ("notes.txt", "a.md")
    thought = WAYS["thoughts"](server, LONG)["choices"][0]["message"]
    assert thought["reasoning_content"].startswith("wine") and thought["content"].startswith("salt")
    stream = WAYS["thoughts, stream"](server, LONG)
    assert "".join(texts(stream, "reasoning_content")).startswith("wine")
    assert "".join(texts(stream, "content")).startswith("salt")
    stopped = WAYS["stop"](server, LONG)["choices"][0]
    assert stopped["finish_reason"] == "stop" and not any(
        stop in (stopped["message"]["content"] or "") for stop in STOPS
    )
    first, second = WAYS["n"](server, LONG)["choices"]
    assert first["message"]["content"] != second["message"]["content"] and {first["index"], second["index"]} == {0, 1}
    found = WAYS["logprobs"](server, LONG)["choices"][0]["logprobs"]["content"]
    assert len(found) > 3 and all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in found)
