"""Models in several files, and files of other names: one model, whichever part is named, and all of its bytes count."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest

from asl_gguf import Llama, ModelError, StateError
from asl_gguf.bench.limit import layer_parameters
from asl_gguf.models import calibration, gguf_header, named
from asl_gguf.models.f32 import expanded
from asl_gguf.models.parts import names_of, parts_of
from chats import command, environment
from split_gguf import split
from tiny_llama import DOCUMENT, N_CTX, QUESTIONS, greedy

PRUNED = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "asl_budget": 0.4, "asl_min_prompt": 80}
PROMPT = DOCUMENT + QUESTIONS[0]


@pytest.fixture(params=[False, True], ids=["tensors in all", "metadata first"])
def parts(request, tiny_model, tmp_path) -> list[Path]:
    found = split(tiny_model("llama"), tmp_path, 20, small_first=request.param)
    assert len(found) > 2
    return found


def opened(path: Path, **options: Any) -> Llama:
    return Llama(str(path), **{**PRUNED, **options})


def answer(path: Path, **options: Any) -> tuple[list[int], Any]:
    llm = opened(path, **options)
    try:
        return greedy(llm, PROMPT, 4), llm.last_prefill
    finally:
        llm.close()


def test_names():
    name = "dir/m-Q4_K_M-00002-of-00003.gguf"
    assert names_of(name) == [f"dir/m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for alone in ("m.gguf", "m-1-of-3.gguf", "sha256-0123", "m-00001-of-00003.gguf.part"):
        assert names_of(alone) == [alone]


@pytest.mark.parametrize("options", [{}, {"asl_budget": "fit:2MiB"}, {"n_ctx": 0}, {"asl_budget": None}], ids=str)
def test_they_answer_as_the_whole_file(parts, tiny_model, options):
    whole = answer(tiny_model("llama"), **options)
    for part in (parts[0], parts[-1]):
        found = answer(part, **options)
        assert found[0] == whole[0] and found[1].kept_tokens == whole[1].kept_tokens


def test_what_is_read_off_the_files(parts, tiny_model, cache):
    source = tiny_model("llama")
    first, whole = str(named.resolve(parts[1])), str(source)
    assert first == str(parts[0]) and gguf_header.kv_widths(first) == gguf_header.kv_widths(whole)
    assert gguf_header.n_ctx_train(first) == gguf_header.n_ctx_train(whole)
    assert layer_parameters(first, 6) == layer_parameters(whole, 6) > 0
    copies = [gguf.GGUFReader(expanded(path)) for path in (first, source)]
    names = [
        sorted((one.name, hashlib.sha256(one.data.tobytes()).hexdigest()) for one in copy.tensors) for copy in copies
    ]
    assert names[0] == names[1] and not any(name.startswith("split.") for name in copies[0].fields)


def test_a_missing_part_is_named(parts):
    os.remove(parts[1])
    for part in (parts[0], parts[-1]):
        with pytest.raises(
            ModelError, match=rf"expected {len(parts)} parts of a split model.*put {parts[1].name} there"
        ):
            opened(part)
        with pytest.raises(ModelError, match="parts of a split model"):
            parts_of(part)


def test_states_of_other_weights_are_refused(parts, tiny_model, tmp_path):
    """Weights of a later part alone are others."""
    llm = opened(parts[0])
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "prompt")
    llm.close()
    data = bytearray(parts[-1].read_bytes())
    data[-100:] = bytes(100)
    parts[-1].write_bytes(data)
    other = opened(parts[0])
    with pytest.raises(StateError, match="expected a state with model file"):
        other.load_prompt(tmp_path / "prompt")
    other.close()


@pytest.mark.long
def test_calibrations(tiny_model, tmp_path, config):
    """One of a split model is found by any of its parts, and not once one of them has changed."""
    deep = tiny_model("llama", n_layer=12)
    parts = split(deep, tmp_path, 40)
    variables = environment() | {"ASL_GGUF_CONFIG_DIR": str(config)}
    arguments = command(
        "calibrate", "-m", parts[1], "--policy", "asl-span", "-t", 1, "--tokens", 700, "--samples", 1, "--step", 3,
        "--auto-samples", 0, "--easy", "passkey", "--hard", "keyvalue",
    )  # fmt: skip
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = calibration.load(named.resolve(parts[-1]), "asl-span")
    assert found is not None and calibration.load(deep, "asl-span") is None
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    assert calibration.load(parts[0], "asl-span") is None


def test_a_blob_of_ollamas(tiny_model, tmp_path):
    """Named after its digest: ~/.ollama/models/blobs/sha256-..."""
    data = tiny_model("llama").read_bytes()
    blob = tmp_path / f"sha256-{hashlib.sha256(data).hexdigest()}"
    shutil.copy(tiny_model("llama"), blob)
    assert answer(blob)[0] == answer(tiny_model("llama"))[0]
