"""One call at a time: a native context that is freed, or in the middle of a prompt, is never entered."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import OptionTypeError, StateError
from ..native.bindings import llama_cpp
from ..native.session import Progress
from ..policies import Policy
from ..policies.contract import Observer, Prompt
from .values import check_tokens_of_text

_T = TypeVar("_T")


class Gate:
    """Every public call of a `Llama` that needs its context enters here.

    Other threads wait until the call that runs has ended; between two tokens of a stream they come in, and the stream
    then says that its prompt is gone. A call from within a callback (asl_progress, a logits processor, a stopping
    criterion, a policy) would come into the middle of the prompt: it is an error, and so is one after close().
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._within: str | None = None
        """the callback that runs"""
        self._changed = threading.Condition()
        self._asking: Counter[int] = Counter()
        """threads that ask the model alone, and how deep"""
        self._depth = 0
        """calls that run, each within the one before"""
        self._free: Callable[[], None] | None = None
        self.closed = False

    @property
    def in_callback(self) -> bool:
        """Whether a callback of the user's runs."""
        return self._within is not None

    @property
    def nested(self) -> bool:
        """Whether the call that runs was made by another one, the parent's."""
        return self._depth > 1

    def check_open(self) -> None:
        """Raises StateError after close()."""
        if self.closed:
            raise StateError("expected an open Llama, got one that was closed; make a new one")

    @contextlib.contextmanager
    def entered(self, *, closed: bool = False) -> Iterator[None]:
        """For the time of a call.

        Args:
            closed: it may be closed already.

        Raises:
            StateError: the object is closed, or runs a callback that calls it.
        """
        with self._lock:
            if self._within is not None:
                raise StateError(
                    f"expected {self._within} to return, got a call of the Llama that runs it; end the prompt or the answer "
                    "first, and call it then"
                )
            if not closed:
                self.check_open()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._free is not None:
                    free, self._free = self._free, None
                    free()

    def entered_for_each(self, values: Iterator[Any]) -> Generator[Any, Any, None]:
        """The same values, each made within a call of its own."""
        sent = None
        try:
            while True:
                with self.entered():
                    try:
                        value = values.send(sent) if isinstance(values, Generator) else next(values)
                    except StopIteration:
                        return
                sent = yield value
        finally:
            if isinstance(values, Generator):
                values.close()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """For the time of a call that asks the model alone: others may run meanwhile, and `close` waits.

        Raises:
            StateError: the object is closed.
        """
        thread = threading.get_ident()
        with self._changed:
            self.check_open()
            self._asking[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._asking[thread] -= 1
                self._asking += Counter()  # drops those at 0
                self._changed.notify_all()

    def close(self, free: Callable[[], None]) -> None:
        """Nobody enters or asks any more. The model is freed when nobody does: a signal handler may call this within a call.

        Raises:
            StateError: a callback calls it, or the same thread asks the model now.
        """
        with self.entered(closed=True), self._changed:
            if threading.get_ident() in self._asking:
                raise StateError("expected tokenize or its like to return, got a call of close within it")
            self.closed, self._free = True, free
            self._changed.wait_for(lambda: not self._asking)

    def guarding(self, name: str, callback: Callable[..., _T]) -> Callable[..., _T]:
        """A callback of the user's, during which nobody enters.

        Args:
            name: what messages call it.
        """

        def guarded(*args: Any, **kwargs: Any) -> _T:
            before, self._within = self._within, name
            try:
                return callback(*args, **kwargs)
            finally:
                self._within = before

        return guarded

    def reporting(self, progress: Progress | None) -> Progress | None:
        """asl_progress, guarded."""
        return None if progress is None else self.guarding("asl_progress", progress)

    def guarding_policy(self, policy: Policy) -> Policy:
        """A copy of a policy whose methods are guarded, and those of its observers."""
        found = copy.copy(policy)

        def start(prompt: Prompt) -> Observer:
            observe = self.guarding("the policy", policy.start)(prompt)
            return self.guarding("the policy", observe) if callable(observe) else observe

        object.__setattr__(found, "start", start)
        for name in _ASKED:
            object.__setattr__(found, name, self.guarding("the policy", getattr(policy, name)))
        return found


_ASKED = ("fewer_rows", "needs_scores", "needs_keys", "keeps_rows", "window_of", "weights_of", "max_rows")
"""what a prefill asks a policy, beside `start`"""


def entering(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an object with `_gate`, within it; a generator that it returns enters for each value."""

    @functools.wraps(method)
    def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._gate.entered():
            found = method(self, *args, **kwargs)
        return self._gate.entered_for_each(found) if isinstance(found, Generator) else found

    return entered


def while_open(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that asks the model alone: at any time before close()."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._gate.asking():
            return method(self, *args, **kwargs)

    return checked


class Tokenizer(llama_cpp.LlamaTokenizer):
    """llama_cpp's, which knows when its model is gone."""

    def __init__(self, llm: Any) -> None:
        super().__init__(llm)
        self._gate, self._n_vocab = llm._gate, llm._model.n_vocab()

    if not TYPE_CHECKING:  # with the parent's signatures

        def tokenize(self, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
            if not isinstance(text, bytes):
                raise OptionTypeError(f"text: expected bytes in UTF-8, got {text!r:.60}")
            with self._gate.asking():
                return super().tokenize(text, *args, **kwargs)

        def detokenize(self, tokens: Any, *args: Any, **kwargs: Any) -> bytes:
            check_tokens_of_text(tokens, self._n_vocab)
            with self._gate.asking():
                return super().detokenize(tokens, *args, **kwargs)


MODEL_ALONE = (
    "tokenize", "detokenize", "n_ctx", "n_embd", "n_vocab", "token_bos", "token_eos", "token_nl", "pooling_type", "tokenizer"
)  # fmt: skip
CONTEXT = (
    "reset", "eval", "sample", "generate", "embed", "create_embedding", "create_completion", "create_chat_completion",
    "save_state", "load_state", "prefill", "save_prompt", "load_prompt", "set_progress",
)  # fmt: skip


def gated(cls: type) -> type:
    """A `Llama` whose public calls are `entering` or `while_open`, wherever they are defined."""
    for names, wrap in ((MODEL_ALONE, while_open), (CONTEXT, entering)):
        for name in names:
            setattr(cls, name, wrap(getattr(cls, name)))
    return cls
