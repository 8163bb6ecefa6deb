"""The clients' own types take every answer."""

from __future__ import annotations

import json

import pytest

from serving import LONG

QUESTION = [{"role": "user", "content": "Read the file named notes.txt."}]
"""asked again and again, since a model of this size calls a tool only after it has seen others do so"""
SCHEMA = {"type": "object", "properties": {"path": {"type": "string", "enum": ["notes.txt"]}}, "required": ["path"]}


NOTES = {"short": "Hello.", "pruned": "Ships carry salt and wine from port to port. " * 30}
"""what the tool found"""


def openai_history(notes: str) -> list[dict]:
    call = {"type": "function", "function": {"name": "read_file", "arguments": '{"path": "notes.txt"}'}}
    messages = []
    for i in range(3):
        messages += [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [{"id": f"c{i}", **call}]}]
        messages += [{"role": "tool", "tool_call_id": f"c{i}", "content": notes}]
    return messages + QUESTION


def anthropic_history(notes: str) -> list[dict]:
    use, messages = {"type": "tool_use", "name": "read_file", "input": {"path": "notes.txt"}}, []
    for i in range(3):
        done = {"type": "tool_result", "tool_use_id": f"c{i}", "content": notes}
        messages += [
            *QUESTION,
            {"role": "assistant", "content": [{"id": f"c{i}", **use}]},
            {"role": "user", "content": [done]},
        ]
    return messages + QUESTION


@pytest.fixture(scope="module")
def openai_client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def anthropic_client(server):
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0)


@pytest.mark.parametrize("notes", NOTES)
def test_openai_tools(openai_client, notes):
    tools = [{"type": "function", "function": {"name": "read_file", "description": "Reads", "parameters": SCHEMA}}]
    kwargs = {
        "model": "any", "messages": openai_history(NOTES[notes]), "tools": tools, "tool_choice": "required", "max_tokens": 60, "temperature": 0,
        "parallel_tool_calls": False,
    }  # fmt: skip
    answer = openai_client.chat.completions.create(**kwargs)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "read_file" and isinstance(json.loads(call.function.arguments)["path"], str)
    assert answer.asl["prompt_tokens"] == answer.usage.prompt_tokens
    assert answer.asl["pruned"] or notes == "short"
    parts = [
        part.function.arguments or ""
        for chunk in openai_client.chat.completions.create(stream=True, **kwargs)
        for choice in chunk.choices
        for part in choice.delta.tool_calls or ()
        if part.index == 0
    ]
    assert len(parts) > 1 and "".join(parts) == call.function.arguments


def test_openai_responses(openai_client):
    answer = openai_client.responses.create(model="any", input="Say hello.", max_output_tokens=8, temperature=0)
    assert answer.output_text and answer.usage.input_tokens > 0


@pytest.mark.compact
def test_openai_errors_have_their_types(openai_client):
    import openai

    with pytest.raises(openai.BadRequestError, match="budget"):
        openai_client.chat.completions.create(model="any", messages=QUESTION, extra_body={"asl": {"budget": 7.5}})


@pytest.mark.compact
def test_anthropic_messages(anthropic_client):
    kwargs = {
        "model": "any",
        "messages": LONG,
        "max_tokens": 8,
        "extra_body": {"temperature": 0, "asl": {"budget": 0.15}},
    }
    answer = anthropic_client.messages.create(**kwargs)
    assert answer.content[0].text and answer.asl["pruned"]
    assert answer.asl["kept_tokens"] < answer.asl["prompt_tokens"]
    with anthropic_client.messages.stream(**kwargs) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().stop_reason == answer.stop_reason


@pytest.mark.parametrize("notes", NOTES)
def test_anthropic_tools(anthropic_client, notes):
    tools = [{"name": "read_file", "description": "Reads a file", "input_schema": SCHEMA}]
    kwargs = {
        "model": "any", "messages": anthropic_history(NOTES[notes]), "tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 60,
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    answer = anthropic_client.messages.create(**kwargs)
    use = next(block for block in answer.content if block.type == "tool_use")
    assert use.name == "read_file" and isinstance(use.input["path"], str)
    assert answer.asl["pruned"] or notes == "short"
    with anthropic_client.messages.stream(**kwargs) as stream:
        final = stream.get_final_message()
    assert next(block for block in final.content if block.type == "tool_use").input == use.input


def test_langchain(server):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", model="any", max_tokens=6, temperature=0,
        extra_body={"asl": {"budget": 0.1}},
    )  # fmt: skip
    answer = chat.invoke(LONG[0]["content"])
    n_tokens = answer.usage_metadata["input_tokens"]
    reports = [slot["asl"].get("report", {}) for slot in server.slots()]
    assert n_tokens // 10 in [
        report.get("kept_tokens") for report in reports if report.get("prompt_tokens") == n_tokens
    ]
    assert "".join(chunk.content for chunk in chat.stream(LONG[0]["content"])) == answer.content
