"""Calibration files that were damaged: no other model minds, and the model of the file is told which file it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama, ModelError
from asl_gguf.models.calibration import load, save
from profiles import N_LAYER, make_calibration

Data = dict[str, Any]


@pytest.fixture
def stored(config, tmp_path) -> tuple[Path, Path]:
    """A file of a model, and its calibration file."""
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" + bytes(range(100)))
    return model, save(model, make_calibration())


def changed(path: str, value: object) -> Callable[[Data], None]:
    """Sets what stands at "a.b.c"."""
    *parents, name = path.split(".")

    def change(data: Data) -> None:
        for parent in parents:
            data = data[int(parent) if parent.isdecimal() else parent]
        data[name] = value

    return change


OURS = "calibrations.asl-span"
DAMAGE = {
    "size without end": changed("size", float("inf")),
    "size a text": changed("size", "1"),
    "file of no name": changed("files.0.name", None),
    "time of a file": changed("files.0.mtime_ns", 0.5),
    "files a number": changed("files", 3),
    "tau without end": changed(f"{OURS}.tau", float("inf")),
    "tau no number": changed(f"{OURS}.tau", float("nan")),
    "tau true": changed(f"{OURS}.tau", True),
    "tradeoff a text": changed(f"{OURS}.tradeoff", "high"),
    "min_layer 99": changed(f"{OURS}.min_layer", 99),
    "min_layer half": changed(f"{OURS}.min_layer", 8.5),
    "a variance of a text": changed(f"{OURS}.profile.variance_easy", ["x"] * N_LAYER),
    "variances a number": changed(f"{OURS}.profile.variance_easy", 1.0),
    "a mean of a list": changed(f"{OURS}.before.nll_loss", []),
    "settings a list": changed(f"{OURS}.settings", []),
    "tasks a text": changed(f"{OURS}.easy", "passkey"),
    "version a number": changed(f"{OURS}.version", 3),
    "no calibrations": changed("calibrations", None),
    "a sha256 of a number": changed("sha256", 5),
}
TEXTS = {
    "deep": '{"format": ' + "[" * 100_000,
    "number": '{"format": 2, "size": 1e400}',
    "digits": "1" * 5000,
    "NaN": "NaN",
    "bytes": "\udcff",
}


def check(stored: tuple[Path, Path]) -> None:
    model, file = stored
    form = rf"expected a calibration of format 2 in {re.escape(str(file))}, got .*; run `asl-gguf calibrate` for this model"
    with pytest.raises(ModelError, match=f"(?s){form}"):
        load(model, "asl-span")
    other = model.with_name("other.gguf")
    other.write_bytes(b"GGUF")
    assert load(other, "asl-span") is None
    save(model, make_calibration())
    assert load(model, "asl-span") == make_calibration()


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_value_that_was_changed(stored, change):
    data = json.loads(stored[1].read_text(encoding="utf-8"))
    change(data)
    stored[1].write_text(json.dumps(data), encoding="utf-8")
    check(stored)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_of_something_else(stored, text):
    stored[1].write_text(text, encoding="utf-8", errors="surrogateescape")
    check(stored)


def test_a_layer_that_the_model_does_not_have(tiny_model, config):
    """Said when the model is loaded, with the name of the file."""
    path = str(tiny_model("llama", n_layer=12, n_head=2, n_head_kv=1, n_ff=64))
    file = save(path, make_calibration(min_layer=17))
    with pytest.raises(
        ModelError, match=rf"in {re.escape(str(file))}, got min_layer 17 for a model with layers 0 to 11"
    ):
        Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, asl_budget=0.4)
    save(path, make_calibration(min_layer=11))
    Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, asl_budget=0.4).close()
