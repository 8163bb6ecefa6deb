"""Models split into several GGUF files, NAME-00001-of-00003.gguf: llama.cpp is given the first and finds the others."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ModelError

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def names_of(file: str) -> list[str]:
    """The files of the model that a file belongs to, by its name: all its parts in order, or this one alone."""
    part = _PART.search(file)
    if part is None:
        return [file]
    return [f"{file[: part.start()]}-{i:05}-of-{part[2]}.gguf" for i in range(1, int(part[2]) + 1)]


def parts_of(path: Path) -> list[Path]:
    """The same of a file on disk.

    Raises:
        ModelError: a part is missing.
    """
    parts = [path.with_name(name) for name in names_of(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing and path.is_file():
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"expected {len(parts)} parts of a split model beside {path}, got {len(parts) - len(missing)}; put {shown} there"
        )
    return parts
