"""Commands as README and docs have them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
DATED = "docs/LOG.md"
"""what was run on a day, perhaps with options that are gone"""
_BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:asl-gguf|make|python|\.venv/bin/python) [^`\n]+(?:\n[^`\n]+)?)`")


def blocks() -> list[tuple[str, str]]:
    """Page and command, of the lines behind `$ ` in console blocks; those that a backslash or a quotation mark goes on are one."""
    found = []
    for page in PAGES:
        for block in _BLOCK.finditer(_text(page)):
            command = ""
            for line in block[2].splitlines():
                begins = line.strip().startswith("$ ")
                if not (begins or command):
                    continue  # what a command printed
                command = line.strip()[2:] if begins else f"{command}\n{line}"
                if not is_open(command):
                    found.append((page, command))
                    command = ""
            assert not command, f"{page}: a command without its end: {command}"
    return found


def inline() -> list[tuple[str, str]]:
    """Page and command, of commands with arguments between backticks."""
    return [(page, " ".join(found[1].split())) for page in PAGES for found in _INLINE.finditer(_text(page))]


def is_open(command: str) -> bool:
    """Whether the next line belongs to it."""
    if command.endswith("\\"):
        return True
    try:
        words(command)
    except ValueError:  # a quotation mark without its other one
        return True
    return False


def words(command: str) -> list[str]:
    """Its words, without a comment."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


def parts(command: str) -> list[list[str]]:
    """The words of each command of a list (`&&`), without variables in front."""
    result: list[list[str]] = [[]]
    for word in words(command):
        if word in ("&&", ";", "|"):
            result.append([])
        elif result[-1] or not re.fullmatch(r"[A-Z_]+=.*", word, re.DOTALL):
            result[-1].append(word)
    return result


def _text(page: str) -> str:
    return "" if page == DATED else (ROOT / page).read_text(encoding="utf-8")
