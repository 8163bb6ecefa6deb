"""`Llama.save_prompt`: a pruned prompt in a file that holds numbers and JSON, no pickled objects."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StateError
from ..models.files import replacing
from ..policies.contract import Floats
from .fingerprint import check_fingerprint
from .host_kv import HostKV
from .snapshot import Snapshot, State

_FORMAT = 1
_KIND = "asl_gguf prompt"

AllRows = tuple[list[int], list[np.ndarray], Floats | None]
"""the tokens, the packed rows of each layer, and the hidden states of a `HostKV`; empty if there are none"""


def save(path: Path, state: State, full: HostKV | None = None) -> int:
    """Writes a state, and K/V of all tokens where they are kept. Returns the file's bytes.

    Raises:
        OSError: the folder cannot be written; an existing file is as it was.
    """
    held = state.held
    about = {
        "kind": _KIND,
        "format": _FORMAT,
        "origin": state.origin,
        "n_pruned": held.n_pruned,
        "sampled": held.sampled,
        "seed": state.seed,
    }
    arrays: dict[str, Any] = {
        "about": np.frombuffer(json.dumps(about).encode("utf-8"), dtype=np.uint8),
        "tokens": np.array(held.tokens, dtype=np.int32),
        "first_cells": np.array(held.first_cells, dtype=np.int32),
        "logits": np.empty(0, np.float32) if held.logits is None else held.logits,
        "cells": np.frombuffer(state.llama_state, dtype=np.uint8),
    }
    if full is not None:
        arrays["full_tokens"] = np.array(full.tokens, dtype=np.int32)  # and their rows, packed as they are
        arrays |= {f"full_{layer}": rows for layer, rows in enumerate(full.layers)}
        arrays |= {} if full.hidden is None else {"hidden": full.hidden}
    with replacing(path) as file:
        np.savez(file, **arrays)
    return path.stat().st_size


def load(path: Path, expected: Any) -> tuple[State, AllRows]:
    """Reads what `save` has written.

    Args:
        expected: the origin that it must have.

    Raises:
        StateError: the file is missing or damaged, or belongs to another model, version or setting.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["kind"] != _KIND or about["format"] != _FORMAT:
                raise ValueError(f"{about['kind']!r} of format {about['format']}")
            check_fingerprint(about["origin"], expected)
            logits = arrays["logits"]
            held = Snapshot(
                tokens=tuple(arrays["tokens"].tolist()),
                sampled=about["sampled"],
                n_pruned=int(about["n_pruned"]),
                first_cells=tuple(arrays["first_cells"].tolist()),
                logits=logits if logits.size else None,
            )
            state = State(held, arrays["cells"].tobytes(), int(about["seed"]), about["origin"])
            return state, _full(arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as err:
        raise StateError(
            f"expected a prompt saved by save_prompt in {path}, got {type(err).__name__}: {err}; prefill the prompt again"
        ) from err


def _full(arrays: Any) -> AllRows:
    layers = [arrays[f"full_{layer}"] for layer in range(sum(name.startswith("full_") for name in arrays) - 1)]
    tokens = arrays["full_tokens"].tolist() if layers else []
    hidden = arrays["hidden"] if "hidden" in arrays else None
    if any(rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != len(tokens) for rows in layers):
        raise ValueError(f"K/V that are not one row of bytes for each of {len(tokens)} tokens")
    if hidden is not None and (hidden.dtype != np.float32 or hidden.ndim != 2 or len(hidden) != len(tokens)):
        raise ValueError(f"hidden states that are not one row of float32 for each of {len(tokens)} tokens")
    return tokens, layers, hidden
