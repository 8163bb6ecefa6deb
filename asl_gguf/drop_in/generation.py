"""Answers as streams of tokens: timed, ended where the cells end, and guarded against another prompt."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ContextFullError, StateError
from ..native.bindings import llama_cpp
from ..report import DecodeReport
from .values import Tokens, checked_sampling

if TYPE_CHECKING:
    from .gate import Gate
    from .logprobs import AnswerLogprobs

_T = TypeVar("_T")
_REST_OF_CHARACTER = 3
"""bytes of UTF-8 after the first one"""


@dataclass(frozen=True)
class Call:
    """What a call of the parent knows about the prompt that it generates from, and does not hand on."""

    max_tokens: int | None = None
    """of the answer; None: no limit"""
    messages: tuple[Any, ...] | None = None
    """of the chat, as they were when it was called"""
    logprobs: AnswerLogprobs | None = None
    """where those of the answer's tokens are noted, if they are asked for"""


_NONE = Call()
_call: ContextVar[Call] = ContextVar("the call that is running", default=_NONE)


def current_call() -> Call:
    """The call of the innermost `known` or `known_to`."""
    return _call.get()


@contextlib.contextmanager
def known(**facts: Any) -> Iterator[None]:
    """What runs within has these facts about its prompt, beside those known already."""
    token = _call.set(replace(_call.get(), **facts))
    try:
        yield
    finally:
        _call.reset(token)


def known_to(chunks: Iterator[_T], call: Call) -> Iterator[_T]:
    """The same chunks, each made with what is known of the call: a stream's prompt runs when its first chunk is asked for."""
    while True:
        token = _call.set(call)
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        finally:
            _call.reset(token)
        yield chunk


def of_parent(llm: Any, tokens: Tokens, *, quiet: bool) -> Tokens:
    """The same tokens; a reset while one is made is the parent's own.

    Args:
        quiet: the parent does not say that it found a prompt in its cache which was prefilled just now.
    """
    sent, verbose = None, llm.verbose
    while True:
        llm._generating, llm.verbose = True, verbose and not quiet
        try:
            token = tokens.send(sent)
        except StopIteration:
            return
        finally:
            llm._generating, llm.verbose, quiet = False, verbose, False
        sent = yield token


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
        n_wanted: max_tokens of the answer, which llama_cpp exceeds to finish a character; 0 without one. Where no
            character comes of it, llama_cpp would go on.
    """
    n_tokens, sent = 0, None
    with contextlib.closing(tokens):
        while True:
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            except ContextFullError:
                if n_tokens < max(n_wanted, 1):
                    raise
                return
            n_tokens += 1
            sent = yield token
            if n_wanted and n_tokens >= n_wanted + _REST_OF_CHARACTER:
                return


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


class LoudProcessors:
    """Logits processors, as they were at the call, whose errors reach the caller.

    llama.cpp calls them through ctypes, which prints what they raise, drops it, and samples as if they were not there.
    """

    def __init__(self, gate: Gate, processors: Sequence[Callable[..., Any]]) -> None:
        self._processors = tuple(gate.guarding("the logits processor", one) for one in processors)
        self._raised: BaseException | None = None

    def __call__(self, ids: Any, scores: Any) -> Any:
        try:
            for processor in self._processors:
                scores = processor(ids, scores)
        except BaseException as err:  # KeyboardInterrupt too
            self._raised = self._raised or err
        return scores

    def check(self) -> None:
        """Raises the first error, if there was one."""
        if self._raised is not None:
            raise self._raised

    def checked(self, tokens: Tokens) -> Tokens:
        """The same tokens, up to the first error."""
        sent = None
        with contextlib.closing(tokens):
            while True:
                try:
                    token = tokens.send(sent)
                except StopIteration:
                    return
                self.check()
                sent = yield token


def as_given(gate: Gate, bound: Mapping[str, Any]) -> tuple[dict[str, Any], LoudProcessors]:
    """Arguments of `generate` or `sample` of `llama_cpp.Llama` with its lists as they are now, and its processors' errors."""
    given = checked_sampling({name: value for name, value in bound.items() if name not in ("self", "tokens")})
    found = given.get("logits_processor") or ()
    processors = LoudProcessors(gate, found if isinstance(found, (list, tuple)) else [found])
    if found:
        given["logits_processor"] = llama_cpp.LogitsProcessorList([processors])
    if (criteria := given.get("stopping_criteria")) is not None:
        given["stopping_criteria"] = guarded_criteria(gate, criteria)
    return given, processors


def guarded_criteria(gate: Gate, criteria: Any) -> Callable[..., bool]:
    """Stopping criteria as they are now, during which nobody enters."""
    if isinstance(criteria, (list, tuple)):
        criteria = copy.copy(criteria) if callable(criteria) else llama_cpp.StoppingCriteriaList(criteria)
    return gate.guarding("the stopping criterion", criteria)
