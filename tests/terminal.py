"""A command in a pseudo-terminal for tests, where there are any: not on Windows."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import time

from patience import PATIENCE


class Terminal:
    """A command in a pseudo-terminal, which is its controlling one: Ctrl-C reaches it.

    Args:
        arguments: the command; the first is the path of a program.
        variables: its environment.
    """

    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        self.drawn = b""
        self._read_to = 0
        self._process, self._end = pty.fork()
        if self._process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that a script runs in the background ignore it
            os.execve(arguments[0], arguments, variables)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait(self, pattern: str) -> str:
        """What is drawn up to the end of a match, after what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.compile(pattern.encode()).search(self.drawn, self._read_to)) is None:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, (pattern, self.drawn[self._read_to :])
            self.drawn += os.read(self._end, 4096)
        seen, self._read_to = self.drawn[self._read_to : found.end()], found.end()
        return seen.decode("utf-8", "replace")

    def end(self) -> int:
        """Reads what is left. Returns the exit code."""
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while part := os.read(self._end, 4096):
                self.drawn += part
        _, status = os.waitpid(self._process, 0)
        self._process = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        os.close(self._end)
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
