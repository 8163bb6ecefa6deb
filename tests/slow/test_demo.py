"""`asl-gguf demo`, as a user runs it, on a short document."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from patience import PATIENCE


def test_demo(smollm2):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-m", "asl_gguf", "demo", "--tokens", "1000", "-t", "2"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    # a busy machine takes longer than 30 seconds, of which a line tells
    assert re.fullmatch(r"(prefill: \d+%, \d+ s left\n)*", done.stderr) and done.returncode == 0, (
        done.stdout + done.stderr
    )
    lines = done.stdout.splitlines()
    expected = re.search(r"^Expected: (\d{7})$", done.stdout, re.MULTILINE)[1]
    rows: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if line.count("|") == 2:
            first, *cells = (cell.strip() for cell in line.split("|"))
            name = first or name  # a long answer goes on in lines without a name
            rows[name] = [f"{old} {new}".strip() for old, new in zip(rows.get(name, ["", ""]), cells, strict=True)]
    assert rows[""] == ["full cache", "budget 0.2"]
    assert all(expected in cell for cell in rows["answer"])
    for name in ("prefill s", "decode tok/s", "KV MiB"):
        assert all(float(cell) > 0 for cell in rows[name])
    assert float(rows["KV MiB"][1]) < float(rows["KV MiB"][0])
    assert rows["selection layer"][0] == "-" and re.fullmatch(r"\d+ of 30", rows["selection layer"][1])
    kept, total = map(int, rows["kept tokens"][1].split(" of "))
    assert kept == total // 5 and rows["kept tokens"][0] == f"{total} of {total}"
    assert lines[-1] == "both answers are right"
