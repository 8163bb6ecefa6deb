"""Bad input: each case is a typed error that says what to do, and the object answers the next prompt like a fresh one."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asl_gguf
from asl_gguf import (
    ContextFullError,
    Llama,
    ModelError,
    OptionError,
    PrefillCancelled,
    PromptError,
    PruningDisabledWarning,
)
from harness import llama_cpp, prompt
from tiny_gguf import N_VOCAB
from tiny_llama import N_CTX, TEXT, chat, complete, greedy

N_TOKENS = 300
NEXT = prompt(320, seed=1)


@pytest.fixture(scope="module")
def expected(tiny_model) -> list[int]:
    """What a fresh object answers to NEXT."""
    return greedy(Llama(str(tiny_model("llama")), n_ctx=N_CTX, n_threads=1, n_threads_batch=1, asl_budget=0.2), NEXT)


def test_prompt_longer_than_n_ctx(make, expected):
    llm = make(asl_budget=0.2)
    calls: list[Callable[[], Any]] = [
        lambda: llm.create_completion(prompt(N_CTX), max_tokens=1),
        lambda: llm(TEXT * 4, max_tokens=1),
        lambda: list(llm.create_completion(prompt(N_CTX + 500), max_tokens=1, stream=True)),
        lambda: llm.create_chat_completion(chat(TEXT * 4)),
        lambda: next(llm.generate(prompt(N_CTX))),
    ]
    for call in calls:
        with pytest.raises(PromptError, match=rf"fewer than n_ctx = {N_CTX} .*raise n_ctx.*exceed context window"):
            call()
        assert greedy(llm, NEXT) == expected
    assert complete(llm, prompt(N_CTX - 1), 5)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("budget", [0.2, None])
def test_no_tokens(make, expected, budget):
    llm = make(asl_budget=budget)
    for call in (lambda: llm.create_completion([]), lambda: next(llm.generate([])), lambda: llm([], stream=False)):
        with pytest.raises(PromptError, match="at least one token, got an empty prompt"):
            call()
    assert budget is None or greedy(llm, NEXT) == expected


def test_an_empty_text_starts_from_bos_as_in_stock(make, stock):
    llm, theirs = make(asl_budget=0.2), stock()
    for text in ("", " ", "\n"):
        assert complete(llm, text)["choices"] == complete(theirs, text)["choices"]
        found = [target.create_chat_completion(chat(text), max_tokens=6, temperature=0.0) for target in (llm, theirs)]
        assert found[0]["choices"] == found[1]["choices"]
        assert found[0]["usage"] == found[1]["usage"]


@pytest.mark.parametrize(
    "tokens",
    [[*prompt(N_TOKENS), N_VOCAB], [-1, *prompt(N_TOKENS)], [*prompt(20), N_VOCAB]],
    ids=["last", "first", "short"],
)
def test_tokens_that_are_none(make, expected, tokens):
    llm = make(asl_budget=0.2)
    with pytest.raises(PromptError, match="expected token ids from 0 to"):
        greedy(llm, tokens)
    assert greedy(llm, NEXT) == expected


@pytest.mark.parametrize(
    "budget", [0, -1, 0.0, -0.5, 1.5, "x", "0.2", True, False, float("nan"), float("inf"), [0.2], 2 + 0j]
)
def test_budget(tiny_model, budget):
    with pytest.raises(OptionError, match=r"^asl_budget: expected .*, got "):
        Llama(str(tiny_model("llama")), asl_budget=budget)


def test_budget_below_what_the_policy_needs(tiny_model):
    with pytest.raises(OptionError, match="asl_budget: expected at least 17 tokens .*, got 16; raise asl_budget"):
        Llama(str(tiny_model("llama")), asl_budget=16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"asl_policy": "slashkv"}, "policy: expected one of asl-span, asl, .*snapkv, .*none.* got 'slashkv'"),
        ({"asl_policy": None}, "policy: expected one of .* got None"),
        ({"asl_policy": 3}, "policy: expected one of .* got 3"),
        ({"asl_polcy": "asl"}, "asl_polcy: expected one of asl_budget, .*asl_policy.*asl_room.* unknown option"),
        ({"asl_decode_ctx": 0}, "asl_decode_ctx: expected .*at least 1.*, got 0"),
        ({"asl_decode_ctx": 0.5}, "asl_decode_ctx: expected .*, got 0.5"),
        ({"asl_room": -1}, "asl_room: expected .*, got -1"),
        ({"asl_room": True}, "asl_room: expected .*, got True"),
        ({"asl_min_prompt": -1}, "asl_min_prompt: expected .*, got -1"),
        ({"asl_min_prompt": 0.1}, "asl_min_prompt: expected .*, got 0.1"),
        ({"asl_dequant": "on"}, "asl_dequant: expected .*off, auto, all, int8, int16, got 'on'"),
        ({"asl_dequant": 1}, "asl_dequant: expected .*, got 1"),
        ({"asl_dequant": ["off"]}, "asl_dequant: expected .*, got "),
        ({"asl_progress": "bar"}, "asl_progress: expected a callable .*, got 'bar'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [0.2, None])
def test_options(tiny_model, options, message, budget):
    if budget is None and "asl_min_prompt" in options:
        pytest.skip("belongs to the budget")
    with pytest.raises(OptionError, match=message):
        Llama(str(tiny_model("llama")), asl_budget=budget, **options)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_refused_object_disappears_quietly(tmp_path):
    for options in ({"asl_budget": 0}, {"asl_budget": 0.2, "asl_oops": 1}, {}):
        with pytest.raises((OptionError, ModelError)):
            Llama(str(tmp_path / "missing.gguf"), **options)


def test_negative_n_ctx(tiny_model):
    for n_ctx in (-1, -1000):
        with pytest.raises((OptionError, PromptError), match="n_ctx"):
            Llama(str(tiny_model("llama")), n_ctx=n_ctx, asl_budget=0.2)


def broken_models(model: Path) -> Iterator[tuple[str, bytes]]:
    data = model.read_bytes()
    yield "empty", b""
    yield "magic", b"GGML" + data[4:]
    yield "text", b"<!doctype html><title>404</title>"
    yield "short", data[:3]
    yield "header", data[:20]
    yield "keys", data[:400]
    yield "tensors", data[: len(data) // 2]
    yield "tail", data[:-1000]
    yield "garbage", b"GGUF" + np.random.default_rng(0).bytes(4000)
    yield "version", data[:4] + b"\xff\0\0\0" + data[8:]


@pytest.mark.parametrize("n_ctx", [512, 0])
@pytest.mark.parametrize("budget", [0.2, None])
def test_corrupt_models(tiny_model, tmp_path, budget, n_ctx):
    for name, data in broken_models(tiny_model("llama")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"expected .*{re.escape(str(path))}|expected .*GGUF"):
            Llama(str(path), n_ctx=n_ctx, asl_budget=budget)


@pytest.mark.parametrize("name", ["missing.gguf", "", ".", "smollm3"])
def test_missing_models(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=f"expected a GGUF file or a named model.*{re.escape(repr(name))}.*smollm2-135m-instruct"
    ):
        Llama(name, asl_budget=0.2)


def test_cancel(make, expected):
    """At the first call, in the middle, and at the last one."""
    calls: list[tuple[int, int]] = []
    llm = make(asl_budget=0.2, n_ubatch=64, asl_progress=lambda *call: calls.append(call))
    greedy(llm, prompt(N_TOKENS))
    n_calls = len(calls)
    assert n_calls > 20 and calls[-1][0] == calls[-1][1] and calls == sorted(calls)
    for stop_at in (1, n_calls // 2, n_calls - 1):
        calls.clear()
        llm.set_progress(lambda *call, stop_at=stop_at: calls.append(call) or len(calls) < stop_at)
        with pytest.raises(PrefillCancelled, match="cancel"):
            greedy(llm, prompt(N_TOKENS, seed=2))
        assert len(calls) == stop_at and llm.n_tokens == 0
        llm.set_progress(None)
        assert greedy(llm, NEXT) == expected


def test_cancel_a_stream(make, expected):
    llm = make(asl_budget=0.2, asl_progress=lambda done, total: False)
    stream = llm.create_chat_completion(chat(TEXT), stream=True)
    with pytest.raises(PrefillCancelled):
        list(stream)
    llm.set_progress(None)
    assert greedy(llm, NEXT) == expected


@pytest.mark.parametrize("how", ["raised", "signal"])
def test_ctrl_c(make, expected, how, request):
    # a process that a script started in the background ignores SIGINT
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            if how == "raised":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    llm = make(asl_budget=0.2, asl_progress=interrupt)
    before = llm.last_prefill
    with pytest.raises(KeyboardInterrupt):
        complete(llm, prompt(N_TOKENS))
    assert llm.last_prefill is before
    llm.set_progress(None)
    assert greedy(llm, NEXT) == expected


def test_ctrl_c_from_outside(make, expected):
    """A signal that comes while native code runs is handled on the way into the callback, before its first line."""
    llm = make(asl_budget=0.2)
    session = llm._asl_session
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), session._interruptible():
            assert session._progress(None, 1, 9) is True
            signal.raise_signal(signal.SIGINT)  # handled without raising: ctypes would drop what is raised here
            assert session._progress(None, 2, 9) is False
            raise PrefillCancelled("what the native call then returns")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert session._progress(None, 1, 9) is True
    finally:
        signal.signal(signal.SIGINT, before)
    assert greedy(llm, NEXT) == expected


def test_an_error_in_the_progress_callback_comes_out(make, expected):
    llm = make(asl_budget=0.2, asl_progress=lambda done, total: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        complete(llm, prompt(N_TOKENS))
    llm.set_progress(lambda done, total: None)
    assert greedy(llm, NEXT) == expected


def test_an_error_in_the_policy_comes_out(make, expected):
    class Broken(asl_gguf.policies.SnapKV):
        def start(self, prompt):
            def observe(scores):
                raise ArithmeticError(scores.layer)

            return observe

    llm = make(asl_budget=0.2, asl_policy=Broken())
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="0"):
            greedy(llm, prompt(N_TOKENS))
    assert greedy(llm, prompt(200)) == greedy(make(asl_budget=0.2), prompt(200))


def test_cells_too_few(make):
    llm = make(asl_budget=200, asl_decode_ctx=256)
    fresh = greedy(make(asl_budget=200, asl_decode_ctx=256), NEXT)
    for _ in range(2):
        with pytest.raises(ContextFullError, match="asl_decode_ctx"):
            complete(llm, prompt(N_TOKENS), 100)
        assert greedy(llm, NEXT) == fresh
    with pytest.raises(ContextFullError, match="asl_decode_ctx"):
        greedy(make(asl_budget=500, asl_decode_ctx=256), NEXT)


def assert_answers_as_stock(make: Callable[..., Any], reason: str, **options: Any) -> Any:
    with pytest.warns(PruningDisabledWarning, match=f"not pruning: .*{reason}"):
        llm = make(asl_budget=0.2, asl_room=16, **options)
    theirs = make(llama_cpp.Llama, **options)
    assert (llm.n_ctx(), llm.n_cells) == (N_CTX, N_CTX)
    for tokens in (NEXT, prompt(20), prompt(600)):
        assert complete(llm, tokens)["choices"] == complete(theirs, tokens)["choices"]
        report = llm.last_prefill
        assert re.search(reason, report.reason) and not report.pruned
        assert (report.prompt_tokens, report.kept_tokens, report.selection_layer) == (len(tokens), len(tokens), None)
        assert report.kv_bytes == report.kv_bytes_full > 0
    text = [
        target.create_chat_completion(chat(TEXT), max_tokens=6, temperature=0.0)["choices"] for target in (llm, theirs)
    ]
    assert text[0] == text[1]
    return llm


@pytest.mark.parametrize("architecture, reason", [("mamba", "recurrent")])
def test_models_that_cannot_be_pruned(make, architecture, reason):
    llm = assert_answers_as_stock(make, reason, architecture=architecture)
    with pytest.raises(PromptError, match="got an empty prompt"):
        complete(llm, [])


@pytest.mark.parametrize("use", ["logits_all", "draft_model"])
def test_uses_that_cannot_be_pruned(make, use):
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    value = LlamaPromptLookupDecoding(num_pred_tokens=2) if use == "draft_model" else True
    llm = assert_answers_as_stock(make, use, n_batch=N_CTX, **{use: value})
    if use == "logits_all":
        assert len(complete(llm, NEXT, 3, logprobs=2)["choices"][0]["logprobs"]["tokens"]) == 3


def test_embeddings_come_from_the_full_prompt(make):
    with pytest.warns(PruningDisabledWarning, match="embedding"):
        llm = make(asl_budget=0.2, embedding=True)
    assert llm.embed("the keeper") == make(llama_cpp.Llama, embedding=True).embed("the keeper")


def test_without_a_budget_nothing_is_announced(make, recwarn):
    make(logits_all=True)
    make(architecture="mamba")
    assert not [warning for warning in recwarn if issubclass(warning.category, PruningDisabledWarning)]
