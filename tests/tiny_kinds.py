"""Tiny random models of every kind of attention that asl_gguf prunes, for tests that need no download.

Their keys and the shapes of their tensors were recorded from llama.cpp's own test models (tests/conformance/record.py);
the weights are drawn from a seed as that test draws them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from tiny_gguf import N_VOCAB, add_tokenizer

if TYPE_CHECKING:
    from harness import Model

_FOLDER = Path(__file__).parent / "kinds"
KINDS: tuple[str, ...] = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
_DEVIATION = np.float32(0.1)


def write_kind(
    path: Path,
    kind: str,
    seed: int = 0,
    *,
    n_layer: int | None = None,
    text: bool = False,
    types: Mapping[str, str] | None = None,
) -> Path:
    """Writes the model of a kind, one of KINDS; the bytes follow from the arguments.

    Args:
        n_layer: the recorded layers again and again, up to so many.
        text: with the tokenizer of tests/tiny_gguf.py.
        types: of tensors by name, such as Q8_0; the others are F32.
    """
    recorded = json.loads((_FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    if n_layer is not None:
        _deepen(recorded, n_layer)
    if text:
        _widen(recorded)
    writer = gguf.GGUFWriter(path, recorded["architecture"])
    for name, (value_type, *value) in recorded["keys"].items():
        sub_type = gguf.GGUFValueType[value[0]] if value_type == "ARRAY" else None
        writer.add_key_value(name, value[-1], gguf.GGUFValueType[value_type], sub_type)
    n_vocab = recorded["keys"][f"{recorded['architecture']}.vocab_size"][-1]
    if text:
        add_tokenizer(writer)
    else:
        writer.add_token_list([f"tok_{i}" for i in range(n_vocab)])
        writer.add_token_scores([0.0] * n_vocab)
    rng = np.random.default_rng(seed)
    for name, shape in recorded["tensors"].items():
        values = _DEVIATION * rng.standard_normal(shape, dtype=np.float32)
        stored = gguf.GGMLQuantizationType[(types or {}).get(name, "F32")]
        # a state must decay
        values = -np.abs(values) if "ssm_a" in name else values
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextmanager
def loaded_kind(folder: Path, kind: str) -> Iterator[Model]:
    """The model of a kind, written there, loaded, and removed afterwards."""
    from harness import Model

    path = write_kind(folder / f"{kind}.gguf", kind)
    with closing(Model(path)) as loaded:
        yield loaded
    path.unlink()


def _deepen(recorded: dict, n_layer: int) -> None:
    keys, tensors = recorded["keys"], recorded["tensors"]
    count = keys[f"{recorded['architecture']}.block_count"]
    n_old, count[-1] = count[-1], n_layer
    for name, value in keys.items():
        if value[0] == "ARRAY" and len(value[-1]) == n_old and ".rope." not in name:
            value[-1] = [value[-1][i % n_old] for i in range(n_layer)]
    layers = [{name: shape for name, shape in tensors.items() if name.startswith(f"blk.{i}.")} for i in range(n_old)]
    for i in range(n_old, n_layer):
        for name, shape in layers[i % n_old].items():
            tensors[f"blk.{i}.{name.split('.', 2)[2]}"] = shape


def _widen(recorded: dict) -> None:
    keys, tensors = recorded["keys"], recorded["tensors"]
    keys[f"{recorded['architecture']}.vocab_size"][-1] = N_VOCAB
    for name in list(keys):
        if name.startswith("tokenizer."):
            del keys[name]
    for name in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight"):
        if name in tensors:
            tensors[name][0] = N_VOCAB
