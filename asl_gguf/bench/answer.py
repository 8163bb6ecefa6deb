"""One greedy answer, and the time to its first token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice

from ..drop_in.llama import Llama
from ..native.bindings import llama_cpp

ANSWER_TOKENS = 16
"""at most"""


def timed_answer(llm: Llama, tokens: list[int], clock: Callable[[], float]) -> tuple[list[int], float]:
    """The answer's tokens, and the seconds of this clock to the first one."""
    answer: list[int] = []
    begin, seconds = clock(), 0.0
    with contextlib.closing(llm.generate(tokens, temp=0.0)) as generated:
        for token in islice(generated, ANSWER_TOKENS):
            seconds = seconds or clock() - begin
            if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
                break
            answer.append(token)
    return answer, seconds
