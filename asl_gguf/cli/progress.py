"""A progress bar with the time left, on a terminal only."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_INTERVAL_SECONDS = 0.1


class ProgressBar:
    """Draws (done, total) on one line of a terminal; silent elsewhere."""

    def __init__(self, label: str, stream: TextIO = sys.stderr) -> None:
        self._label = label
        self._stream = stream
        self._active = stream.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._last = 0

    def __call__(self, done: int, total: int) -> None:
        if not self._active or total <= 0:
            return
        now = time.monotonic()
        if done < self._last:
            self._started = now  # a new job begins
        self._last = done
        if now - self._drawn < _INTERVAL_SECONDS and done < total:
            return
        self._drawn = now
        share = min(1.0, done / total)
        filled = round(share * _WIDTH)
        left = (now - self._started) * (1 / share - 1) if share > 0 else 0.0
        self._stream.write(
            f"\r{self._label} [{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}  {left:4.0f} s left "
        )
        if done >= total:
            self.clear()
        self._stream.flush()

    def clear(self) -> None:
        """Removes the line."""
        if self._active:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
