"""llama.cpp's own tests of its server: the same ones pass with every prompt through our engine as with its server as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from cut_gguf import cut

SCRIPT = Path(__file__).parents[3] / "bench" / "server" / "conformance.py"
FILES = ["test_basic.py", "test_tokenize.py", "test_ignore_eos.py"]
"""what takes some seconds each; the script runs all that one local model can pass"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.compact
def test_the_same_tests_pass(smollm2, tmp_path):
    for name in ("requests", "aiohttp", "filelock", "prometheus_client", "wget", "openai"):
        pytest.importorskip(name)
    script = load()
    tests = script.find_tests()
    if tests is None:
        pytest.skip("llama.cpp's tests come with the source tree below build/")
    model = tmp_path / "cut.gguf"
    cut(smollm2, model, 3)
    found = {name: script.run(tests, FILES, model, budget, tmp_path) for name, budget in script.RUNS.items()}
    assert found["engine"] == found["stock"]
    assert sum(outcome == "PASSED" for outcome in found["stock"].values()) >= 11
