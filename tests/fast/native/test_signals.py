"""Handlers of signals around a native call: all of them are there again, whenever one of them raises."""

from __future__ import annotations

import _signal
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from asl_gguf.native import signals

NUMBERS = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)


class TimeUp(Exception):
    pass


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """As a program with a timeout has them."""

    def time_up(*_: Any) -> None:
        raise TimeUp

    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's worker may ignore it
    signal.signal(signal.SIGALRM, time_up)
    signal.signal(signal.SIGTERM, lambda *_: None)
    yield {number: signal.getsignal(number) for number in NUMBERS}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("at", range(8))
def test_the_time_is_up_while_handlers_are_replaced(handlers, monkeypatch, at):
    """After the at-th replacement: three on the way in, three on the way out; then never."""

    class Late:
        n_calls = 0
        getsignal = staticmethod(_signal.getsignal)

        @classmethod
        def signal(cls, number: int, handler: Any) -> None:
            _signal.signal(number, handler)
            cls.n_calls += 1
            if cls.n_calls == at:
                signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(signals, "_signal", Late)
    told: list[bool] = []
    try:
        with signals.handled_after(told.append):
            pass
        assert at in (0, 7)
    except TimeUp:
        assert 0 < at < 7
    assert {number: signal.getsignal(number) for number in NUMBERS} == handlers
    assert told == [False]
