"""`Llama.save_prompt`: a pruned prompt in a file that holds numbers and JSON, no pickled objects.

The file is a zip archive of NumPy arrays (`np.load` reads it) whose comment is the sha256 of all bytes before it. `load`
checks the digest before anything is parsed, and what was parsed before anything of it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import StateError
from ..models.files import replacing
from ..policies.contract import Floats
from .fingerprint import check_fingerprint
from .form import Form
from .host_kv import HostKV
from .snapshot import Snapshot, State

_FORMAT = 2
_KIND = "asl_gguf prompt"
_ARRAYS = {"about", "tokens", "first_cells", "logits", "cells"}
_ABOUT = {"kind", "format", "origin", "n_pruned", "sampled", "seed", "full_layers"}
_PREFIX = b"sha256:"
_COMMENT_BYTES = len(_PREFIX) + 64
_CHUNK = 1 << 20

AllRows = tuple[list[int], list[np.ndarray], Floats | None, dict[int, np.ndarray]]
"""the tokens, the packed rows of each layer, the hidden states and the recurrent ones of a `HostKV`; empty if there are none"""
_FULL = {"full_tokens", "hidden", "state_ends", "states"}


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
        "full_layers": 0 if full is None else full.depth,
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
        if full.states:
            arrays["state_ends"] = np.array(list(full.states), dtype=np.int32)
            arrays["states"] = np.stack(list(full.states.values()))
    with replacing(path) as file:
        np.savez(file, **arrays)
        _seal(file)
    return path.stat().st_size


def load(path: Path, expected: Any, form: Form) -> tuple[State, AllRows]:
    """Reads what `save` has written.

    Args:
        expected: the origin that it must have.
        form: of the model's states.

    Raises:
        StateError: the file is missing or damaged, or belongs to another model, version or setting.
    """
    try:
        with path.open("rb") as file:
            _check_seal(file)
            with np.load(file, allow_pickle=False) as arrays:
                return _parse({name: _whole_member(arrays, name) for name in arrays}, expected, form)
    except StateError:
        raise
    # Parsers of NumPy, zip and JSON raise nearly anything on bytes that somebody wrote by hand.
    except Exception as err:
        raise StateError(
            f"expected a prompt saved by save_prompt in {path}, got {type(err).__name__}: {err}; prefill the prompt again"
        ) from err


def _whole_member(arrays: Any, name: str) -> np.ndarray:
    """An array whose bytes are all of its member behind the header that NumPy writes for it."""
    array = arrays[name]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    if not array.flags.c_contiguous or arrays.zip.getinfo(f"{name}.npy").file_size != header.tell() + array.nbytes:
        raise ValueError(f"{name} with other bytes than those of {array.dtype} {list(array.shape)}")
    return array


def _seal(file: BinaryIO) -> None:
    """Gives a zip archive without a comment one: the digest of all that comes before it."""
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT_BYTES.to_bytes(2, "little"))
    n_bytes = file.tell()
    file.write(_PREFIX + _digest(file, n_bytes))


def _check_seal(file: BinaryIO) -> None:
    n_bytes = file.seek(0, os.SEEK_END) - _COMMENT_BYTES
    file.seek(max(n_bytes, 0))
    found = file.read()
    if not found.startswith(_PREFIX):
        raise ValueError("a file without a digest at its end")
    if found != _PREFIX + _digest(file, n_bytes):
        raise ValueError("a file that was changed: its digest is another")
    file.seek(0)


def _digest(file: BinaryIO, n_bytes: int) -> bytes:
    """Hex digits of the first n_bytes' sha256; the file is left after them."""
    digest = hashlib.sha256()
    file.seek(0)
    left = n_bytes
    while left > 0 and (part := file.read(min(left, _CHUNK))):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest().encode()


def _parse(arrays: dict[str, np.ndarray], expected: Any, form: Form) -> tuple[State, AllRows]:
    about = json.loads(arrays["about"].tobytes())
    if about["kind"] != _KIND or about["format"] != _FORMAT:
        raise ValueError(f"{about['kind']!r:.80} of format {about['format']!r:.80}")
    check_fingerprint(about["origin"], expected)
    layers = [f"full_{layer}" for layer in range(min(about["full_layers"], len(arrays)))]
    if about.keys() != _ABOUT or not _ARRAYS <= arrays.keys() <= _ARRAYS | _FULL | {*layers}:
        raise ValueError(f"other parts than save_prompt writes: {sorted([*about, *arrays])}")
    kinds = {
        "tokens": np.int32,
        "first_cells": np.int32,
        "logits": np.float32,
        "cells": np.uint8,
        "full_tokens": np.int32,
        "state_ends": np.int32,
    }
    for name in kinds.keys() & arrays.keys():
        if arrays[name].dtype != kinds[name] or arrays[name].ndim != 1:
            raise ValueError(f"{name} of type {arrays[name].dtype} and shape {list(arrays[name].shape)}")
    if type(seed := about["seed"]) is not int or not -(2**31) <= seed <= 2**32:
        raise ValueError(f"the seed {seed!r:.80}")
    if not arrays["cells"].size:
        raise ValueError("no KV cells")
    held = Snapshot(
        tokens=tuple(arrays["tokens"].tolist()),
        sampled=about["sampled"],
        n_pruned=about["n_pruned"],
        first_cells=tuple(arrays["first_cells"].tolist()),
        logits=arrays["logits"] if arrays["logits"].size else None,
    )
    form.check(held)
    ends, states = arrays.get("state_ends", np.empty(0, np.int32)), arrays.get("states", np.empty((0, 0), np.uint8))
    if len(ends) != len(states):
        raise ValueError(f"recurrent states after {len(ends)} numbers of tokens, of shape {list(states.shape)}")
    full = (
        arrays["full_tokens"].tolist() if "full_tokens" in arrays else [],
        [arrays[name] for name in layers],
        arrays.get("hidden"),
        dict(zip(ends.tolist(), states)),
    )
    form.check_rows(*full)
    return State(held, arrays["cells"].tobytes(), seed, about["origin"]), full
