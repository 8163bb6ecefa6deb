"""The policies against traces of the ASL authors' implementation, on the default model with F32 weights.

Two of the case files in tests/oracle; all of them with ASL_ORACLE=all in the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patience import PATIENCE

CASES = Path(__file__).parent.parent / "oracle"
QUICK = ("short", "niah_sf_d50")


@pytest.fixture
def cases(tmp_path: Path) -> list[Path]:
    """The case files to compare, in a folder of their own."""
    names = [path.stem for path in CASES.glob("*.json")] if os.environ.get("ASL_ORACLE") == "all" else QUICK
    (tmp_path / "cases").mkdir()
    return [Path(shutil.copy(CASES / f"{name}.json", tmp_path / "cases")) for name in sorted(names)]


def test_every_setting_agrees(smollm2, cases, tmp_path):
    cache = tmp_path / "cache"  # of the F32 copy
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ASL_GGUF_CACHE": str(cache),
    }
    arguments = ["--cases", str(cases[0].parent), "-m", str(smollm2), "-t", "2", "--json"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "asl_gguf.bench.oracle", *arguments],
            env=environment, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(done.stdout)
    wrong = [(row["case"], row["setting"], row["complaints"]) for row in rows if not row["agrees"]]
    assert not wrong, wrong
    assert done.returncode == 0 and done.stderr == ""
    settings = {(path.stem, setting["name"]) for path in cases for setting in json.loads(path.read_text())["settings"]}
    assert {(row["case"], row["setting"]) for row in rows} == settings
    assert all(row["selection_layer"][0] == row["selection_layer"][1] for row in rows)
    assert all(row["greedy"] == row["n_greedy"] == 16 for row in rows)
    print(
        f"{len(rows)} settings; largest logit difference {max(row['logit'] for row in rows if not row['swapped']):.1e}"
    )
