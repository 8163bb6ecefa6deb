"""Calls that would enter a context that is freed, in the middle of a prompt, or in use by another thread."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest

from asl_gguf import Llama, PrefillCancelled, StateError
from asl_gguf.drop_in import gate, surface
from harness import prompt
from llama_calls import ASKED, CALLS, OF_THE_MODEL
from tiny_llama import DOCUMENT, QUESTIONS, chat, complete, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
NATIVE_FREE = {
    "ctx", "model", "eval_tokens", "eval_logits", "set_cache", "set_seed", "close", "logits_to_logprobs",
    "longest_token_prefix", "from_pretrained",
}  # fmt: skip
"""public names of the parent that enter no context"""


def test_every_public_method_is_tried():
    assert set(surface.parent_methods()) - NATIVE_FREE <= set(CALLS) | set(OF_THE_MODEL)
    assert set(gate.CONTEXT) <= set(CALLS) and set(gate.MODEL_ALONE) <= set(OF_THE_MODEL)


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_after_close(make, tmp_path, options):
    llm = make(**options)
    stream = complete(llm, ASKED, stream=True)
    next(stream)
    for _ in range(2):
        llm.close()
        for name, call in (CALLS | OF_THE_MODEL).items():
            if name == "create_chat_completion_openai_v1":
                pytest.importorskip("openai")
            with pytest.raises(StateError, match="expected an open Llama, got one that was closed; make a new one"):
                call(llm, tmp_path)
    with pytest.raises(StateError, match="expected an open Llama"):
        next(stream)
    copied = [copy.copy(llm), pickle.loads(pickle.dumps(llm))]  # of the arguments, which are still there
    for one in copied:
        assert len(greedy(one, ASKED, 2)) == 2
        one.close()


def test_within_a_progress_callback(make, tmp_path):
    """Each call is refused there and ends the prompt; the object answers the next one as a fresh one does."""
    llm, expected = make(**PRUNED), greedy(make(**PRUNED), ASKED)
    for name, call in (CALLS | {"close": lambda llm, folder: llm.close()}).items():
        if name == "create_chat_completion_openai_v1":
            continue  # create_chat_completion, where openai is installed
        llm.set_progress(lambda done, total, call=call: call(llm, tmp_path) and None)
        with pytest.raises(StateError, match="expected asl_progress to return, got a call of the Llama that runs it"):
            llm.prefill(ASKED)
        llm.set_progress(None)
        assert greedy(llm, ASKED) == expected, name


def test_what_a_progress_callback_may_ask(make, tmp_path):
    """The model's vocabulary and sizes; and it may cancel and raise."""
    llm, found = make(**PRUNED), []
    llm.set_progress(lambda *_: found.append([call(llm, tmp_path) for call in OF_THE_MODEL.values()]) or None)
    llm.prefill(ASKED)
    assert found and all(len(each) == len(OF_THE_MODEL) for each in found)
    llm.set_progress(lambda *_: False)
    with pytest.raises(PrefillCancelled):
        llm.prefill(prompt(200, seed=5))


def test_threads_take_turns(make):
    """A call waits until that of another thread has ended: each answer is a fresh object's."""
    llm, prompts = make(**PRUNED), [prompt(200 + 7 * i, seed=i) for i in range(4)]
    expected = [complete(make(**PRUNED), tokens, 4)["choices"] for tokens in prompts]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = [complete(llm, prompts[i], 4)["choices"] for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [[choices] * 3 for choices in expected]


def test_a_stream_of_another_thread(make):
    """Between its tokens another call comes in: the stream says that its prompt is gone."""
    llm = make(**PRUNED)
    stream = complete(llm, ASKED, 20, stream=True)
    next(stream)
    thread = threading.Thread(target=lambda: greedy(llm, DOCUMENT + QUESTIONS[1], 2))
    thread.start()
    thread.join()
    with pytest.raises(StateError, match="got a prompt, a reset or a state since the last token"):
        list(stream)


def test_a_close_of_another_thread_waits(make):
    llm, entered, closed = make(**PRUNED), threading.Event(), []

    def report(done: int, total: int) -> None:
        if not entered.is_set():
            entered.set()
            thread.start()
        assert not closed

    thread = threading.Thread(target=lambda: (llm.close(), closed.append(True)))
    llm.set_progress(report)
    llm.prefill(ASKED)
    thread.join()
    assert closed and entered.is_set()
    with pytest.raises(StateError, match="expected an open Llama"):
        llm.reset()


def test_a_caller_that_changes_its_arguments(make):
    """Messages, tokens and options are those of the call, whenever its first chunk is read."""
    options = PRUNED | {"asl_protect": "question", "asl_min_prompt": 40}
    messages = [{"role": "system", "content": "Be brief. " * 12}, *chat("What is there? " * 4)]
    whole = make(**options).create_chat_completion(copy.deepcopy(messages), max_tokens=4, temperature=0.0)
    for change in (
        list.clear,
        lambda given: given.append({"role": "user", "content": "More."}),
        lambda given: given[-1].update(content="Else?"),
        lambda given: given[-1].clear(),
    ):
        llm, given = make(**options), copy.deepcopy(messages)
        stream = llm.create_chat_completion(given, max_tokens=4, temperature=0.0, stream=True)
        change(given)
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
        assert text == (whole["choices"][0]["message"]["content"] or "") and llm.last_prefill.protected_tokens
        assert llm.last_prefill.prompt_tokens == whole["usage"]["prompt_tokens"]
    llm, tokens, bias = make(**PRUNED), list(ASKED), {70: 100.0}
    stream, tokens_too = complete(llm, tokens, 3, stream=True, logit_bias=bias), list(ASKED)
    tokens.clear()
    bias.clear()
    assert len(list(stream)) >= 3 and llm.last_prefill.prompt_tokens == len(ASKED)
    answer = llm.generate(tokens_too, temp=0.0)
    tokens_too.clear()
    next(answer)
    assert llm.last_prefill.prompt_tokens == len(ASKED)


def test_a_llama_is_closed_by_whoever_drops_it(tiny_model):
    llm = Llama(str(tiny_model("llama")), n_ctx=512, n_threads=1, n_threads_batch=1, **PRUNED)
    closed = llm.close
    del llm
    closed()
