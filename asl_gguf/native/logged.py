"""Errors that llama.cpp logs: the reasons where its functions return nothing but NULL."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .bindings import llama_cpp
from .signals import handled_after

_ERROR = 4
"""GGML_LOG_LEVEL_ERROR, for which llama_cpp's own table has another number"""
_LONGEST = 300
_GENERAL = re.compile(
    r"failed to (load|create|initialize|read) (the )?(model|context|header|tensor info)|^error loading model$"
)
"""lines that say no more than that something failed"""
_PLACE = re.compile(r"^(?:\w+: )+|\b\w+_\w+: |error loading model(?: \w+)?: |llama_model_loader: ")

_lock = threading.Lock()
_own = threading.local()  # lists of this thread
_n_open = 0
_theirs: Any = None  # who has the log, while it is ours
_theirs_data = ctypes.c_void_p()


class Logged:
    """What was logged as an error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def reason(self) -> str:
        """The first line that says something, without the names of functions in front of it; empty if there is none."""
        texts = [_PLACE.sub("", line.strip()) for line in self.lines]
        telling = [text for text in texts if text and not _GENERAL.search(text)]
        return telling[0][:_LONGEST] if telling else ""

    @property
    def because(self) -> str:
        """The reason behind a colon; empty if there is none."""
        return f": {self.reason}" if self.reason else ""


@contextmanager
def errors_logged() -> Iterator[Logged]:
    """Notes what llama.cpp logs as errors on this thread. Whoever takes its log gets it all the same.

    Ctrl-C acts afterwards: within one of the functions that take the log, it would be dropped.
    """
    logged = Logged()
    stack = _own.__dict__.setdefault("stack", [])
    with handled_after(lambda _: None):
        _open()
        stack.append(logged.lines)
        try:
            yield logged
        finally:
            stack.pop()
            _close()


def _open() -> None:
    global _n_open, _theirs, _theirs_data
    with _lock:
        _n_open += 1
        if _n_open == 1:
            callback, data = _current()
            if not _is_ours(callback):  # whoever found ours there may have put it back after us
                _theirs, _theirs_data = callback, data
            llama_cpp.llama_log_set(_note, None)


def _close() -> None:
    global _n_open
    with _lock:
        _n_open -= 1
        if _n_open == 0 and _is_ours(_current()[0]):  # else someone has taken it meanwhile
            llama_cpp.llama_log_set(_theirs, _theirs_data)


def _current() -> tuple[Any, ctypes.c_void_p]:
    """Who has the log, and the pointer that they get."""
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return callback, data


def _is_ours(callback: Any) -> bool:
    return _address(callback) == _address(_note)


def _address(callback: Any) -> int | None:
    return ctypes.cast(callback, ctypes.c_void_p).value


@llama_cpp.llama_log_callback
def _note(level: int, text: bytes, _data: Any) -> None:
    stack = _own.__dict__.get("stack")
    if level == _ERROR and stack:
        stack[-1].append(text.decode("utf-8", "replace"))
    if _theirs:
        _theirs(level, text, _theirs_data)
