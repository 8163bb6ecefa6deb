"""Answers as streams of tokens: timed, ended where the cells end, and guarded against another prompt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence

from ..errors import ContextFullError, StateError
from ..report import DecodeReport

Tokens = Generator[int, Sequence[int] | None, None]


def timed(tokens: Tokens, started: Callable[[float], None], sampled: Callable[[int, DecodeReport], None]) -> Tokens:
    """The same tokens.

    Args:
        started: called with the seconds to the first one.
        sampled: called with each token before it is given out, and the answer's report up to it.
    """
    begin = time.perf_counter()
    try:
        token = next(tokens)
    except StopIteration:
        return
    first = time.perf_counter()
    started(first - begin)
    n_decoded = 0
    while True:
        sampled(token, DecodeReport(n_decoded, time.perf_counter() - first))
        sent = yield token
        try:
            token = tokens.send(sent)
        except StopIteration:
            return
        n_decoded += 1


def until_full(tokens: Tokens, n_wanted: int) -> Tokens:
    """The same tokens, up to where the cells end, if that is after n_wanted: as stock's answers end at n_ctx.

    Args:
        n_wanted: max_tokens of the answer, which llama_cpp exceeds to finish a character; 0 without one.
    """
    n_tokens, sent = 0, None
    with contextlib.closing(tokens):
        while True:
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            except ContextFullError:
                if n_tokens < n_wanted:
                    raise
                return
            n_tokens += 1
            sent = yield token


def undisturbed(tokens: Tokens, turn: Callable[[], int]) -> Tokens:
    """The same tokens, as long as nothing else is asked in between.

    Args:
        turn: another number after every prompt and reset.

    Raises:
        StateError: the next token would go on from another prompt.
    """
    sent, began = None, None
    with contextlib.closing(tokens):
        while True:
            if began is not None and turn() != began:
                raise StateError(
                    "expected each answer to be read to its end, or to be given up, before the next prompt; got a prompt, a reset "
                    "or a state since the last token of this one. Ask again"
                )
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            began = turn()
            sent = yield token
