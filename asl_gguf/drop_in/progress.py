"""Bars for (done, total): on a terminal, in lines elsewhere, and tqdm's for Python and Jupyter."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # the command imports this before it knows whether there is a library
    from ..native.session import Progress

_WIDTH = 30
_INTERVAL_SECONDS = 0.1
LINE_SECONDS = 30.0
"""between lines where there is no terminal"""


class ProgressBar:
    """Draws (done, total) on one line of a terminal. Elsewhere long work leaves a line every 30 seconds."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        # a dumb terminal cannot erase a line
        self._on_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.monotonic()
        self._drawn = float("-inf") if self._on_terminal else self._started
        self._last, self._begun = 0, 0.0

    def __call__(self, done: int, total: int) -> None:
        if total <= 0:
            return
        now, share = time.monotonic(), min(1.0, done / total)
        if done < self._last:
            self._started, self._begun = now, share  # a new job, of which this much took no time
        self._last = done
        if self._on_terminal:
            self._draw(now, share)
        elif now - self._drawn >= LINE_SECONDS and share < 1:
            self._drawn = now
            self._stream.write(f"{self._label}: {share:.0%}{self._left(now, share)}\n")
            self._stream.flush()

    def _left(self, now: float, share: float) -> str:
        """The time that is left, at the pace since the job began; nothing as long as there is no pace."""
        if share <= self._begun:
            return ""
        return f", {_duration((now - self._started) * (1 - share) / (share - self._begun))} left"

    def _draw(self, now: float, share: float) -> None:
        if now - self._drawn < _INTERVAL_SECONDS and share < 1:
            return
        self._drawn = now
        left = self._left(now, share).lstrip(", ").rjust(12)
        texts = (
            f"\r{self._label} {self._bar(share)} {share:4.0%}  {left} ",
            f"\r{self._label} {share:4.0%}",
            f"\r{share:4.0%}",
        )
        columns = shutil.get_terminal_size().columns  # a line that wraps could not be drawn over
        self._stream.write(next((text for text in texts if len(text) - 1 < columns), texts[-1]))
        if share >= 1:
            self.clear()
        self._stream.flush()

    @staticmethod
    def _bar(share: float) -> str:
        filled = round(share * _WIDTH)
        return f"[{'#' * filled}{'.' * (_WIDTH - filled)}]"

    def clear(self) -> None:
        """Removes the line."""
        if self._on_terminal:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class TqdmBar:
    """The same as a bar of tqdm, one for each job. Totals may change meanwhile.

    Args:
        make: `tqdm.auto.tqdm`, or its like.
    """

    def __init__(self, make: Any) -> None:
        self._make = make
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and done < self._bar.n:
            self._close()
        if self._bar is None:
            self._bar = self._make(total=total, desc="prefill", unit=" token-layers", unit_scale=True, leave=False)
        self._bar.total, self._bar.n = total, done
        self._bar.update(0)  # draws, if the last time was long enough ago
        if done >= total:
            self._close()

    def _close(self) -> None:
        self._bar.refresh()
        self._bar.close()
        self._bar = None


def progress_of(value: Progress | bool | None) -> Progress | None:
    """What `asl_progress` asks for: a callable as it is, True: tqdm's bar where it is installed, else a plain one."""
    if value is not True:
        return value or None
    try:
        return TqdmBar(importlib.import_module("tqdm.auto").tqdm)
    except ImportError:
        return ProgressBar("prefill")
