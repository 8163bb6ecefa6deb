"""The results of evaluations on disk: one JSON line per answer, never half a line, never the same answer twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..budget.targets import is_target
from ..errors import OptionError

FULL = "none"
"""the policy that keeps all"""

TIMES = frozenset({"full_seconds", "prefill_seconds", "prefill_spent", "decode_seconds", "seconds"})
"""columns that no two runs have alike"""

_NUMBER, _OR_NONE = (int, float), (int, float, type(None))
_BUDGET = (*_OR_NONE, str)
"""`auto` and its like are texts"""
_REQUIRED: dict[str, Any] = {
    "task": str, "policy": str, "model": str, "length": int, "index": int, "seed": int, "budget": _BUDGET,
    "score": _NUMBER, "nll": _NUMBER, "selection_layer": _OR_NONE, "prefill_share": _NUMBER, "kv_share": _NUMBER,
}  # fmt: skip
_KINDS = _REQUIRED | dict.fromkeys(
    (*TIMES, "kl", "top1_agreement", "kv_bytes", "n_layer", "attention_mass", "budget_tokens", "prompt_tokens", "decode_tokens"),
    _OR_NONE,
)  # fmt: skip

Row = dict[str, Any]
Key = tuple[str, int, int, int, str, float | int | str | None]


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
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(_checked(json.loads(line)))
        except (ValueError, RecursionError) as err:
            raise OptionError(f"expected one JSON result per line in {path}, got in line {number}: {err}") from None
    return rows


def _checked(row: Any) -> Row:
    """A line that `asl-gguf eval` of any version may have written. Raises ValueError for another."""
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.80}, which is no object")
    if missing := [name for name in _REQUIRED if name not in row]:
        raise ValueError(f"an object without {missing[0]}")
    for name, value in row.items():
        kinds = _KINDS.get(name)
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"{value!r:.80} as {name}")
    if isinstance(row["budget"], str) and not is_target(row["budget"]):
        raise ValueError(f"{row['budget']!r:.80} as budget")
    return row
