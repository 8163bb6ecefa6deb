"""A model that is freed is asked nothing any more: neither by another thread nor by a tokenizer that was handed out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asl_gguf import Llama, StateError
from tiny_llama import TEXT, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_while_other_threads_tokenise(make, options):
    """close() waits for their calls, and what they call next is an error."""
    for _ in range(4):
        check_while_others_ask(make(**options))


def check_while_others_ask(llm: Any) -> None:
    text, started, ended = TEXT.encode() * 8, threading.Barrier(5), []
    tokens, tokenizer, inner = llm.tokenize(text), llm.tokenizer(), llm.tokenizer_
    calls = [
        lambda: llm.tokenize(text),
        lambda: llm.detokenize(tokens),
        lambda: tokenizer.encode(TEXT),
        lambda: inner.decode(tokens),
    ]

    def ask(call: Any) -> None:
        started.wait()
        with pytest.raises(StateError, match="expected an open Llama, got one that was closed"):
            while True:
                call()
        ended.append(call)

    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    started.wait()
    for _ in range(3):
        llm.tokenize(text)
    llm.close()
    for thread in threads:
        thread.join()
    assert len(ended) == 4


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_a_tokenizer_after_close(make, options):
    llm = make(**options)
    for tokenizer in (llm.tokenizer(), llm.tokenizer_):
        assert tokenizer.decode(tokenizer.encode("On day 3")).strip() == "On day 3"
    llm.close()
    for call in (
        lambda: tokenizer.encode("On day 3"),
        lambda: tokenizer.decode([70]),
        lambda: tokenizer.detokenize([70]),
    ):
        with pytest.raises(StateError, match="expected an open Llama"):
            call()


def test_a_close_within_a_tokenizer_of_ones_own(make):
    """Its thread asks the model at that time."""

    class Closing:
        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
            llm.close()
            return [70]

        def detokenize(self, tokens: Any, prev_tokens: Any = None, special: bool = False) -> bytes:
            return b"x"

    llm = make(**PRUNED, tokenizer=Closing())
    with pytest.raises(StateError, match="expected tokenize or its like to return, got a call of close within it"):
        llm.tokenize(b"On day 3")
    assert llm.detokenize([70]) == b"x" and len(greedy(llm, [70] * 20, 2)) == 2


def test_a_model_that_is_closed_while_others_are_made(tiny_model):
    """A tokenizer belongs to its own object."""
    first, second = (Llama(str(tiny_model("llama")), n_threads=1, n_threads_batch=1) for _ in range(2))
    tokenizer = second.tokenizer()
    first.close()
    assert tokenizer.encode("On day 3")
    second.close()
