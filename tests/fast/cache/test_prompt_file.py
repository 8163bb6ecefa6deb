"""Files of `save_prompt` that were damaged or written by hand: only StateError, and before anything changes."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import sys
import zipfile
from typing import Any

import numpy as np
import pytest

from asl_gguf import StateError
from asl_gguf.policies import ASL
from prompt_files import parts_of, rewritten, sealed
from tiny_gguf import N_VOCAB
from tiny_llama import DOCUMENT, QUESTIONS, greedy

N_LAYER = 6
PLAIN = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": "snapkv"}
FULL = PLAIN | {"asl_full_kv": True, "asl_policy": ASL(min_layer=2, obs_layers=2, tau=2)}


def saved_by(llm: Any, path: Any) -> bytes:
    llm.prefill(DOCUMENT)
    llm.save_prompt(path)
    return path.read_bytes()


def refused(llm: Any, path: Any, data: bytes, what: str) -> None:
    path.write_bytes(data)
    with pytest.raises(StateError) as raised:
        llm.load_prompt(path)
    assert what in str(raised.value), raised.value
    assert f"in {path}, got" in str(raised.value) and str(raised.value).endswith("; prefill the prompt again")


ABOUT: dict[str, tuple[dict[str, Any], str]] = {
    "sampled a text": {"sampled": "x"},
    "sampled beyond the vocabulary": {"sampled": N_VOCAB},
    "sampled true": {"sampled": True},
    "pruned more than there is": {"n_pruned": len(DOCUMENT) + 1},
    "pruned less than nothing": {"n_pruned": -1},
    "pruned 0.5": {"n_pruned": 0.5},
    "pruned a text": {"n_pruned": "all"},
    "seed a text": {"seed": "x"},
    "seed without end": {"seed": 10**30},
    "kind": {"kind": ["asl_gguf prompt"]},
    "format": {"format": 1},
    "another key": {"more": 1},
}  # fmt: skip
ARRAYS: dict[str, dict[str, Any]] = {
    "three logits": {"logits": np.zeros(3, np.float32)},
    "logits of f64": {"logits": np.zeros(N_VOCAB, np.float64)},
    "logits of two dimensions": {"logits": np.zeros((1, N_VOCAB), np.float32)},
    "no cells": {"cells": np.zeros(0, np.uint8)},
    "cells of int32": {"cells": np.zeros(9, np.int32)},
    "no tokens": {"tokens": np.zeros(0, np.int32)},
    "a token beyond the vocabulary": {"tokens": np.array([*DOCUMENT[:-1], N_VOCAB], np.int32)},
    "a negative token": {"tokens": np.array([*DOCUMENT[:-1], -1], np.int32)},
    "tokens of f32": {"tokens": np.array(DOCUMENT, np.float32)},
    "first cells of two layers": {"first_cells": np.zeros(2, np.int32)},
    "a negative first cell": {"first_cells": np.full(N_LAYER, -1, np.int32)},
    "another array": {"more": np.zeros(1)},
    "K/V without tokens": {"full_0": np.zeros((1, 4), np.uint8)},
    "a scalar": {"about": np.array(1)},
    "no JSON": {"about": np.frombuffer(b"{", np.uint8)},
    "deep JSON": {"about": np.frombuffer(b"[" * 100_000, np.uint8)},
    "JSON of a list": {"about": np.frombuffer(b"[]", np.uint8)},
}


def test_parts_that_save_prompt_never_writes(make, tmp_path):
    """With a digest that is right. The object still has the prompt it had."""
    llm, path = make(**PLAIN), tmp_path / "prompt"
    data = saved_by(llm, path)
    parts = parts_of(data)
    about = json.loads(parts["about"].tobytes())
    for changes in ABOUT.values():
        text = json.dumps(about | changes).encode()
        refused(llm, path, rewritten(parts | {"about": np.frombuffer(text, np.uint8)}), "got ")
    for name in about:
        text = json.dumps({key: value for key, value in about.items() if key != name}).encode()
        refused(llm, path, rewritten(parts | {"about": np.frombuffer(text, np.uint8)}), "got ")
    for changes in ARRAYS.values():
        refused(llm, path, rewritten(parts | changes), "got ")
    for name in parts:
        refused(
            llm,
            path,
            rewritten({key: value for key, value in parts.items() if key != name}),
            "got KeyError" if name == "about" else "got ",
        )
    path.write_bytes(rewritten(parts))
    assert greedy(llm, DOCUMENT + QUESTIONS[0]) and llm.last_prefill.reused_tokens == len(DOCUMENT)
    assert llm.load_prompt(path) == DOCUMENT  # what the changes began with


def test_kv_of_all_tokens_of_another_form(make, tmp_path):
    llm, path = make(**FULL), tmp_path / "prompt"
    parts = parts_of(saved_by(llm, path))
    layers = [name for name in parts if name.startswith("full_") and name != "full_tokens"]
    assert len(layers) == 3 and "hidden" in parts
    first, hidden, tokens = parts["full_0"], parts["hidden"], parts["full_tokens"]
    for changes in (
        {"full_0": first[:, :-1].copy()},
        {"full_0": first[:-1]},
        {"full_0": first.astype(np.int8)},
        {"full_4": first},
        {f"full_{layer}": first for layer in range(3, 7)},
        {"hidden": hidden[:, 1:].copy()},
        {"hidden": hidden.astype(np.float64)},
        {"full_tokens": tokens[:-1]},
        {"full_tokens": tokens + N_VOCAB},
        {"full_tokens": tokens.astype(np.int64)},
    ):
        refused(llm, path, rewritten(parts | changes), "got ")
    for name in ("hidden", "full_tokens", "full_0", "full_2"):
        refused(llm, path, rewritten({key: value for key, value in parts.items() if key != name}), "got ")
    path.write_bytes(rewritten(parts))
    assert llm.load_prompt(path) == DOCUMENT and greedy(llm, DOCUMENT + QUESTIONS[0])
    assert llm.last_prefill.reused_tokens == len(DOCUMENT)


def test_bytes_that_changed(make, tmp_path):
    """Wherever: a member that is renamed in the archive's directory alone, what follows the archive, the digest itself."""
    llm, path = make(**PLAIN), tmp_path / "prompt"
    data = saved_by(llm, path)
    at = data.rindex(b"tokens.npy")
    renamed = data[:at] + b"tokenz.npy" + data[at + 10 :]
    for changed in (renamed, data[:-1] + bytes([data[-1] ^ 1]), data[:-71] + b"x" + data[-71:]):
        refused(llm, path, changed, "changed")
    for changed in (b"", b"PK", data + b"x", data[:-71], bytes(len(data)), pickle.dumps({"about": 1})):
        refused(llm, path, changed, "digest")


def test_archives_written_by_hand(make, tmp_path):
    """Sealed, and no arrays that NumPy could read without trusting them."""
    llm, path = make(**PLAIN), tmp_path / "prompt"
    parts = parts_of(saved_by(llm, path))
    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<i4', 'fortran_order': False, 'shape': (%s,), }"
    for member in (
        pickle.dumps({}),
        header % b"1099511627776",
        header % (b"(" * 100 + b"1" + b")" * 100),
        header.replace(b"<i4", b"|O") % b"1",
        header.replace(b"'shape'", b"'shape", 1),
    ):
        file = io.BytesIO(rewritten({name: part for name, part in parts.items() if name != "tokens"})[:-71])
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = b""
            archive.writestr("tokens.npy", member.ljust(128) + b"\n" + bytes(64))
        refused(llm, path, sealed(file.getvalue()), "got ")


def test_a_state_made_by_hand(make):
    """`load_state` looks as closely."""
    llm = make(**PLAIN)
    llm.prefill(DOCUMENT)
    state = llm.save_state()
    for name, value in {
        "logits": np.zeros(3, np.float32), "sampled": N_VOCAB, "n_pruned": -1, "tokens": (0,) * 200 + (-1,), "first_cells": (0,)
    }.items():  # fmt: skip
        forged = pickle.loads(pickle.dumps(state))
        object.__setattr__(forged.held, name, value)
        with pytest.raises(StateError, match="expected a state that save_state has made, got another"):
            llm.load_state(forged)
    assert greedy(llm, DOCUMENT + QUESTIONS[0]) and llm.last_prefill.reused_tokens == len(DOCUMENT)
    object.__setattr__(state.held, "tokens", state.held.tokens[:-3])
    object.__setattr__(state.held, "n_pruned", 0)
    with pytest.raises(
        StateError, match=f"expected KV cells of {len(DOCUMENT) - 3} tokens, got cells of {len(DOCUMENT)}"
    ):
        llm.load_state(state)
    assert greedy(llm, DOCUMENT) == greedy(make(**PLAIN), DOCUMENT)


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
def test_a_saved_file_is_like_any_other(make, tmp_path):
    """Its mode is what the umask leaves, or that of the file it replaces; a symbolic link at its path stays one."""
    llm, path, link = make(**PLAIN), tmp_path / "prompt", tmp_path / "link"
    llm.prefill(DOCUMENT)
    before = os.umask(0o027)
    try:
        llm.save_prompt(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        llm.save_prompt(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
        link.symlink_to(path.name)
        path.write_bytes(b"")
        llm.save_prompt(link)
        assert link.is_symlink() and llm.load_prompt(path) == DOCUMENT
        dangling = tmp_path / "dangling"
        dangling.symlink_to("later")
        llm.save_prompt(dangling)
        assert dangling.is_symlink() and (tmp_path / "later").is_file()
    finally:
        os.umask(before)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["dangling", "later", "link", "prompt"]
