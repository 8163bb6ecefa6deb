"""The results of evaluations on disk: one JSON line per answer, never half a line, never the same answer twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import OptionError

FULL = "none"
"""the policy that keeps all"""

TIMES = frozenset({"full_seconds", "prefill_seconds", "prefill_spent", "decode_seconds", "seconds"})
"""columns that no two runs have alike"""

Row = dict[str, Any]
Key = tuple[str, int, int, int, str, float | int | None]


class Results:
    """The lines of a folder. A line is written whole or not at all, whenever the process is killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        self.rows = read_rows(self._path, repair=True)
        self._keys = {key_of(row) for row in self.rows}

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, row: Row) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._keys.add(key_of(row))

    def check_same(self, **values: Any) -> None:
        """Refuses lines that were made in another way; fields that old lines lack are not compared.

        Raises:
            OptionError: a field of a line has another value.
        """
        for row in self.rows:
            for name, value in values.items():
                if name in row and row[name] != value:
                    raise OptionError(
                        f"expected results with {name} {value!r} in {self._path}, got {row[name]!r}; give another --out"
                    )


def key_of(row: Row) -> Key:
    """What names an answer."""
    return (row["task"], row["length"], row["index"], row["seed"], row["policy"], row["budget"])


def read_rows(path: Path, *, repair: bool = False) -> list[Row]:
    """The lines of a results file; a last line that was cut off is left out, and removed from the file to repair it.

    Raises:
        OptionError: another line is no result.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as err:
        raise OptionError(f"expected one JSON result per line in {path}: {err}") from None
