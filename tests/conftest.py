"""Fixtures of all tests, and tests/ on the search path."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from harness import Model

# A calibration of the developer's own must not change what tests see.
os.environ["ASL_GGUF_CONFIG_DIR"] = tempfile.mkdtemp(prefix="asl-gguf-tests-")

# Every run draws the same examples, however slow the machine is.
settings.register_profile("fast", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("short", settings.get_profile("fast"), max_examples=30)
settings.load_profile("fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--short", action="store_true", help="of tests/fast each value once, nothing long (tests/cases.py)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pairs(*names): these arguments come from tests/pairs.py")
    if config.getoption("--short"):
        settings.load_profile("short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--short"):
        return
    from cases import shortened

    fast = Path(__file__).parent / "fast"
    taken, left_out = shortened([item for item in items if fast in item.path.parents])
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if fast not in item.path.parents] + taken


def pytest_collection_finish() -> None:
    """The garbage collector need not look at thousands of collected tests again and again."""
    gc.freeze()


# Only the fixtures that need llama.cpp import the harness: laws in NumPy run without a built library.


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(architecture, **sizes)`: path of a tiny random model, written once a session."""
    from tiny_gguf import write_model

    folder = tmp_path_factory.mktemp("tiny-models")

    def path_of(architecture: str, **sizes: object) -> Path:
        name = "-".join([architecture, *(f"{key}={value}" for key, value in sorted(sizes.items()))])
        path = folder / f"{name}.gguf"
        return path if path.exists() else write_model(path, architecture, **sizes)

    return path_of


@pytest.fixture(scope="session")
def load_tiny(tiny_model: Callable[..., Path]) -> Iterator[Callable[..., Model]]:
    """`load_tiny(architecture, **sizes)`: a loaded tiny model, shared by the tests of a session."""
    from harness import Model

    loaded: dict[Path, Model] = {}

    def load(architecture: str, **sizes: object) -> Model:
        path = tiny_model(architecture, **sizes)
        if path not in loaded:
            loaded[path] = Model(path)
        return loaded[path]

    yield load
    for model in loaded.values():
        model.close()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The named model smollm2-135m-instruct, pulled unless it is in the cache."""
    from asl_gguf.models import named

    return named.resolve(named.pull("smollm2-135m-instruct"))
