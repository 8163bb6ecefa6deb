"""What a type checker, and so an editor, says about calls of this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import asl_gguf


def test_type_checkers_see_the_arguments(tmp_path):
    pytest.importorskip("mypy")
    code = tmp_path / "use.py"
    code.write_text(
        "from asl_gguf import Llama\n"
        "Llama('m.gguf', n_ctx=512, asl_budget=0.1, n_gpu_layers=-1)\n"
        "Llama('m.gguf', asl_room='much')\n"
        "Llama('m.gguf', n_gpu_layer=1)\n",
        encoding="utf-8",
    )
    root = Path(asl_gguf.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", str(code)], capture_output=True, text=True, cwd=root
    )
    lines = [line.split(":")[1] for line in found.stdout.splitlines() if ": error:" in line and "use.py" in line]
    assert lines == ["3", "4"], found.stdout
