"""One call at a time: a native context that is freed, or in the middle of a prompt, is never entered."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..errors import StateError
from ..native.session import Progress


class Gate:
    """Every public call of a `Llama` that needs its context enters here.

    Other threads wait until the call that runs has ended; between two tokens of a stream they come in, and the stream
    then says that its prompt is gone. A call from within asl_progress would come into the middle of the prompt: it is
    an error, and so is one after close().
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reporting = False
        self.closed = False

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
            StateError: the object is closed, or reports progress to whoever calls.
        """
        with self._lock:
            if self._reporting:
                raise StateError(
                    "expected asl_progress to return, got a call of the Llama whose prompt it watches; return False to cancel "
                    "the prompt, and call it then"
                )
            if not closed:
                self.check_open()
            yield

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

    def reporting(self, progress: Progress | None) -> Progress | None:
        """asl_progress, during which nobody enters."""
        if progress is None:
            return None

        def report(done: int, total: int) -> bool | None:
            self._reporting = True
            try:
                return progress(done, total)
            finally:
                self._reporting = False

        return report


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
        self._gate.check_open()
        return method(self, *args, **kwargs)

    return checked


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
