"""The user's own files: texts, JSON, JSON lines. Nothing is downloaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import OptionError


def label(spec: str) -> str:
    """A task with its file's name in the place of its path: what results are filed under on every machine."""
    name, colon, source = spec.partition(":")
    return name + colon + Path(source).name


def read_text(path: str) -> str:
    """A UTF-8 text.

    Raises:
        OptionError: the file cannot be read, or holds none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise OptionError(f"expected a UTF-8 text file, got {path}: {err}; check the path") from None
    if not text.strip():
        raise OptionError(f"expected a text, got the empty file {path}; give another one")
    return text


@lru_cache(maxsize=4)
def read_json(path: str) -> Any:
    """A JSON file. Its values are shared: do not change them.

    Raises:
        OptionError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as err:
        raise OptionError(f"expected a JSON file, got {path}: {err}; check the path") from None


@lru_cache(maxsize=4)
def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON lines file. They are shared: do not change them.

    Raises:
        OptionError: the file cannot be read, or a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise OptionError(f"expected one JSON object per line in {path}, got line {number}: {err}") from None
        if not isinstance(row, dict):
            raise OptionError(f"expected one JSON object per line in {path}, got {type(row).__name__} in line {number}")
        rows.append(row)
    return rows
