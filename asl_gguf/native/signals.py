"""Handlers of signals that come during a native call run after it, where what they raise reaches the caller.

Python runs handlers on entry to a callback as well, before any try of ours: ctypes would print and drop what they raise, and
what they close would be freed while the library works with it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal wraps
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = tuple(sorted(signal.valid_signals()))
"""as plain numbers, for some have no name: signal.getsignal would try to name each handler, 0.2 ms a slice"""


@contextlib.contextmanager
def handled_after(interrupted: Callable[[bool], None]) -> Iterator[None]:
    """For the time of a native call.

    Args:
        interrupted: told True at Ctrl-C, so that the call ends early, and False afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {int(number): old for number in _SIGNALS if callable(old := _signal.getsignal(number))}
    caught: list[tuple[int, Any]] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            interrupted(True)
        caught.append((number, frame))

    try:
        for number in handlers:
            _signal.signal(number, note)
        yield
    finally:
        raised = _restore(dict(handlers))
        interrupted(False)
        with contextlib.ExitStack() as all_of_them:  # whatever one of them raises
            for number, frame in reversed(caught):
                all_of_them.callback(handlers[number], number, frame)
        if raised is not None:
            raise raised


def _restore(handlers: dict[int, Any]) -> BaseException | None:
    """All of them, whatever those raise that are there again. Returns the first such error."""
    raised: BaseException | None = None
    while handlers:
        try:
            for number in list(handlers):
                _signal.signal(number, handlers[number])
                del handlers[number]
        except BaseException as err:
            raised = raised or err
    return raised
