"""The command `asl-gguf` in a process of its own, and what tests of its chat share."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "asl_gguf", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


SELECTS = "fastkv"
"""a policy that drops tokens of random models too"""
N_TOKENS = 8
"""of an answer"""
LLAMA_OPTIONS = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "asl_policy": SELECTS}
ANSWER_OPTIONS = {"max_tokens": N_TOKENS, "temperature": 0.0}


def messages(path: str | Path) -> list[dict[str, str]]:
    return json.loads(Path(path).read_text(encoding="utf-8"))["messages"]


def contents(path: str | Path, role: str) -> list[str]:
    return [message["content"] for message in messages(path) if message["role"] == role]


def numbers(row: str, out: str) -> list[list[float]]:
    """The numbers of a row of every /report."""
    return [
        [float(number) for number in re.findall(r"\d+(?:\.\d+)?", rest)]
        for rest in re.findall(rf"^{row} +(.*)$", out, re.MULTILINE)
    ]
