"""How OpenMP's threads wait at barriers: set before libgomp loads, and only where the user has said nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from patience import PATIENCE

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
LOADED = "import ctypes; ctypes.CDLL('libgomp.so.1')\n"
SAYS = "import os, asl_gguf.native.bindings; from asl_gguf.native import loading; print(loading.waiting)\n"
INHERITED = "print([name for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT') if name in os.environ])\n"


def run(code: str, **variables: str) -> tuple[list[str], str]:
    """Lines of the output of a new process, and what libgomp says of its settings when it is loaded."""
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"OMP_DISPLAY_ENV": "verbose"} | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this build has no libgomp")
    return done.stdout.splitlines(), done.stderr


def test_threads_spin_for_a_moment():
    (says, inherited), shown = run(SAYS + INHERITED)
    assert "GOMP_SPINCOUNT = '1000'" in shown
    assert says.startswith("threads spin 1,000 rounds, then sleep") and inherited == "[]"


@pytest.mark.parametrize("name, value", [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "77")])
def test_what_the_user_sets_stays(name, value):
    (says, inherited), shown = run(SAYS + INHERITED, **{name: value})
    assert "GOMP_SPINCOUNT = '1000'" not in shown
    assert says == f"{name}={value} (environment)" and inherited == f"['{name}']"


def test_libgomp_was_loaded_before():
    """It reads its variables once: all that is left is to say so."""
    (says,), shown = run(LOADED + SAYS)
    assert "GOMP_SPINCOUNT = '1000'" not in shown and "loaded before asl_gguf" in says
