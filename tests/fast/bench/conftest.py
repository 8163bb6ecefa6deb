"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "bench" / "gpu" / "write_model.py"


@pytest.fixture(scope="module")
def script():
    """bench/gpu/write_model.py as a module."""
    spec = importlib.util.spec_from_file_location("bench_gpu_write_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
