"""Writes down what a model of asl-archs is made of, for the fast tests: `python record.py FILE NAME`.

Keys and the shapes of tensors go to tests/kinds/NAME.json; tests/tiny_kinds.py draws weights for them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf

KINDS = Path(__file__).parents[1] / "kinds"


def value_of(field: gguf.ReaderField) -> Any:
    """[type name, value] of a key, or ["ARRAY", type name, values]."""
    kind = field.types[0]
    contents = field.contents()
    return ["ARRAY", field.types[-1].name, contents] if kind == gguf.GGUFValueType.ARRAY else [kind.name, contents]


def record(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    keys = {name: value_of(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "general.architecture"):
        keys.pop(name, None)
    shapes = {tensor.name: tensor.shape.tolist()[::-1] for tensor in reader.tensors}
    return {"architecture": reader.fields["general.architecture"].contents(), "keys": keys, "tensors": shapes}


if __name__ == "__main__":
    KINDS.mkdir(exist_ok=True)
    text = json.dumps(record(Path(sys.argv[1])), separators=(",", ":"))
    (KINDS / f"{sys.argv[2]}.json").write_text(text.replace('],"', '],\n"') + "\n", encoding="utf-8")
