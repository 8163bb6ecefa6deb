"""Standard input, output and error of the command, whatever they are connected to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from typing import Any, BinaryIO

from ..errors import AslError, PromptError

_KEYWORD = re.compile(r"\basl_(budget|policy|dequant|protect|guard|full_kv|decode_ctx)\b")


class ClosedStreamError(AslError):
    """Standard output is closed."""


def open_streams() -> None:
    """Letters that an encoding lacks are escaped. Before anything is computed, a closed standard output is an error.

    Raises:
        ClosedStreamError: there is no standard output.
    """
    if sys.stderr is None:  # Python's name for a closed one; print would take standard output in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        raise ClosedStreamError("expected a standard output to print to, got a closed one; connect it, or use > FILE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def standard_input() -> BinaryIO:
    """Its bytes.

    Raises:
        PromptError: it is closed.
    """
    if sys.stdin is None:
        raise PromptError("expected a text on standard input, got a closed one; connect it, or name a --file")
    return sys.stdin.buffer


def as_typed(error: object) -> str:
    """An error's message with options as they are typed: it has their names in Python."""
    return _KEYWORD.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error))


def warn(text: str) -> None:
    """One line on stderr about what was asked for and will not be."""
    print(f"asl-gguf: warning: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One line. Letters are escaped where the output's encoding lacks some."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    print(json.dumps(value, ensure_ascii=not encoding.startswith("utf")))


def drop_output() -> None:
    """What is left in the buffer cannot be written: Python would try once more, and complain, when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
