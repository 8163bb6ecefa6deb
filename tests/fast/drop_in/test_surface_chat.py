"""The keywords of create_chat_completion; function calling and chat handlers: test_surface_tools.py."""

from __future__ import annotations

from typing import Any

import pytest

from asl_gguf.drop_in import surface
from harness import llama_cpp
from surface_cases import LAYERED, PRUNED, UNPRUNED
from surface_chat_cases import WORKS, answer, completed, text_of

pytestmark = pytest.mark.usefixtures("short_prompts_count")

NO_EFFECT = {"tfs_z", "stream", "tool_choice"}
"""the template of the tiny model has no place for tools that are not called"""


@pytest.fixture(scope="module")
def plain(shared) -> Any:
    """The parent's answer to BASE."""
    return answer(shared(llama_cpp.Llama))


def test_every_keyword_that_works_is_tried():
    rows = surface.KEYWORDS["create_chat_completion"]
    assert {name for name, row in rows.items() if row.status == surface.WORKS} == {
        *WORKS, "logprobs", "top_logprobs",
    }  # fmt: skip  # the last two: test_logprobs


@pytest.mark.parametrize("name", WORKS)
def test_a_keyword_with_nothing_pruned(shared, plain, name):
    theirs = answer(shared(llama_cpp.Llama), **WORKS[name])
    assert (theirs != plain) == (name not in NO_EFFECT)
    for options in (UNPRUNED, LAYERED):
        llm = shared(**options)
        found = answer(llm, **WORKS[name])
        assert not llm.last_prefill.pruned
        if name == "stop":  # the parent's plain answer ends at the first of the list: test_completion.py
            assert found[1:] == theirs[1:]
        else:
            assert found == theirs


@pytest.mark.parametrize("name", WORKS)
def test_a_keyword_with_a_pruned_prompt(shared, name):
    llm = shared(**PRUNED)
    choice, usage, _ = answer(llm, **WORKS[name])
    report = llm.last_prefill
    assert report.pruned and report.kept_tokens == report.prompt_tokens * 2 // 5 == usage["prompt_tokens"] * 2 // 5
    assert usage["total_tokens"] == report.prompt_tokens + usage["completion_tokens"]
    parts = [part["choices"][0] for part in completed(llm, stream=True, **WORKS[name])]
    streamed, whole = "".join(text_of(part["delta"]) for part in parts), text_of(choice["message"])
    assert streamed == whole
    # a streamed function call always ends with "tool_calls", in the parent too
    assert parts[-1]["finish_reason"] in (choice["finish_reason"], "tool_calls")
