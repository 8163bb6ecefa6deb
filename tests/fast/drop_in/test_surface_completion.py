"""The keywords of create_completion: the parent's answers with nothing pruned, and what holds of a pruned prompt."""

from __future__ import annotations

from typing import Any

import pytest

from asl_gguf.drop_in import surface
from harness import llama_cpp, prompt
from surface_cases import BASE, LAYERED, PROMPT, PRUNED, TOKENS, UNPRUNED, WORKS, completed

pytestmark = pytest.mark.usefixtures("short_prompts_count")

NO_EFFECT = {"tfs_z", "stream"}


def answer(llm: Any, **arguments: Any) -> Any:
    found = completed(llm, **arguments)
    return found["choices"], found["usage"], found["model"]


@pytest.fixture(scope="module")
def plain(shared) -> Any:
    """The parent's answer to BASE."""
    return answer(shared(llama_cpp.Llama))


def test_every_keyword_that_works_is_tried():
    rows = surface.KEYWORDS["create_completion"]
    assert {name for name, row in rows.items() if row.status == surface.WORKS} == {*WORKS, "logprobs"}  # test_logprobs


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
def test_a_keyword_with_a_pruned_prompt(make, shared, name):
    """The whole prompt counts, and every way to ask gives one text."""
    llm = shared(**PRUNED)
    (choice,), usage, model = answer(llm, **WORKS[name])
    report = llm.last_prefill
    assert report.pruned and report.kept_tokens == report.prompt_tokens * 2 // 5
    n_prompt = len(TOKENS) if name == "prompt" else len(llm.tokenize(PROMPT.encode()))
    n_prompt += 3 + len(llm.tokenize(b" The end.", add_bos=False)) if name == "suffix" else 0
    assert usage["prompt_tokens"] == report.prompt_tokens == n_prompt
    assert usage["total_tokens"] == n_prompt + usage["completion_tokens"]
    assert usage["completion_tokens"] <= WORKS[name].get("max_tokens", 8)
    parts = list(completed(llm, stream=True, **WORKS[name]))
    text = "".join(part["choices"][0]["text"] for part in parts)
    assert choice["text"] == (PROMPT + text if name == "echo" else text)
    assert parts[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert {part["model"] for part in parts} == {model} == {WORKS[name].get("model", llm.model_path)}
    assert answer(make(**PRUNED), **WORKS[name])[:2] == ([choice], usage)


def test_a_stream_prefills_when_its_first_chunk_is_asked_for(make):
    """A prompt that cannot be served is refused then, as by the parent."""
    llm = make(**PRUNED)
    parts = completed(llm, stream=True)
    assert llm.last_prefill is None
    next(parts)
    assert llm.last_prefill.pruned
    too_long = completed(llm, prompt=prompt(1024), stream=True)
    with pytest.raises(ValueError, match="got a prompt of 1024; raise n_ctx"):
        next(too_long)


def test_it_is_called_like_a_function(make):
    llm = make(**PRUNED)
    arguments = {name: value for name, value in BASE.items() if name != "prompt"}
    found = llm(PROMPT, " The end.", **arguments)
    assert found["choices"] == completed(llm, suffix=" The end.")["choices"] and llm.last_prefill.pruned


def test_stop_cuts_the_text(make):
    """One string or several; the earliest counts."""
    llm = make(**PRUNED)
    text = completed(llm, max_tokens=24)["choices"][0]["text"]
    for stop in (text[9], [text[9:11], "not in there"], list(text[9:12])):
        cut = min(text.index(part) for part in ([stop] if isinstance(stop, str) else stop) if part in text)
        for stream in (False, True):
            found = completed(llm, max_tokens=24, stop=stop, stream=stream)
            choices = [part["choices"][0] for part in (found if stream else [found])]
            assert "".join(choice["text"] for choice in choices) == text[:cut]
            assert choices[-1]["finish_reason"] == "stop"
