"""Standard input, output and error of the command, whatever they are connected to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from typing import Any, BinaryIO

from ..errors import AslError, PromptError

_OURS = "budget policy dequant protect guard full_kv decode_ctx".split()
_THEIRS = {
    "n_ctx": "--ctx-size", "n_batch": "--batch-size", "n_ubatch": "--ubatch-size", "n_threads": "--threads",
    "n_gpu_layers": "-ngl", "type_k": "--cache-type-k", "type_v": "--cache-type-v", "flash_attn=True": "-fa",
    "lora_path": "--lora", "kv_overrides": "--override-kv", "tensor_split": "--tensor-split", "max_tokens": "--max-tokens",
}  # fmt: skip
_TYPED = _THEIRS | {f"asl_{name}": f"--{name.replace('_', '-')}" for name in _OURS}
_KEYWORD = re.compile(rf"(?<![\w./-])({'|'.join(_TYPED)})(?![\w.=/-]\w)\b")
"""names of options in Python, but where they are parts of a path"""


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
    return _KEYWORD.sub(lambda found: _TYPED[found[1]], str(error))


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
