"""Every architecture of the pinned llama.cpp: random models of its own, each through stock and through asl_gguf.

    python tests/conformance/run.py --archs build/.../bin/asl-archs [--only REGEX] [--out docs/MODELS.md]

`make conformance` builds asl-archs first. Each file has a process of its own, so that one that aborts is a row of the table
and not the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CASE = Path(__file__).parent / "case.py"
ROOT = CASE.parents[2]
DECIDING = (
    "LLAMA_CPP_VERSION", "native/archs/main.cpp", "native/src/support.cpp", "native/src/graph-check.cpp", "native/src/graph.cpp",
    "native/src/graph-hidden.cpp", "native/src/graph-index.cpp", "native/src/full-graph.cpp", "native/src/parts.cpp",
    "native/src/carried.cpp", "native/src/per-layer.cpp", "tests/conformance/case.py",
)  # fmt: skip
"""files that a change of the table would begin in: docs/MODELS.md has their digest, and a test compares it"""
SEEDS = (0, 1)
TIMEOUT = 900.0
ENVIRONMENT = os.environ | {"GGML_NO_BACKTRACE": "1"}
DIGEST = "Sources of this page: `"
BEFORE = "80 of 145"
"""files that were pruned before the rules of native/src/support.cpp were widened (2026-11-26)"""


@dataclass(frozen=True)
class Row:
    """One file."""

    architecture: str
    variant: str
    state: str
    """pruned, refused, failed, stock fails, no fixture"""
    text: str
    layers: tuple[str, ...] = ()


def write_fixture(archs: Path, architecture: str, variant: str, seed: int, path: Path) -> bool:
    """Whether llama.cpp could make the model."""
    command = [str(archs), architecture, variant, str(seed), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=ENVIRONMENT)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and path.exists()


def run_case(path: Path, *options: str) -> dict[str, Any] | str:
    """What case.py printed, or how its process ended."""
    try:
        done = subprocess.run(
            [sys.executable, str(CASE), str(path), *options],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {TIMEOUT:.0f} s"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        asserted = [re.sub(r"^.*/(?=ggml|src)", "", line) for line in lines if "GGML_ASSERT" in line or "Error" in line]
        return f"ended with {done.returncode}: {(asserted or lines or ['no message'])[-1].strip()}"
    return json.loads(done.stdout.splitlines()[-1]) if "--stock" not in options else {}


def check(archs: Path, architecture: str, variant: str, seed: int, folder: Path) -> Row:
    path = folder / f"{architecture}-{variant}-{seed}.gguf"
    if not write_fixture(archs, architecture, variant, seed, path):
        return Row(architecture, variant, "no fixture", "llama.cpp's test makes no model of it")
    found = run_case(path)
    row = read_row(architecture, variant, found)
    if isinstance(found, str) and isinstance(run_case(path, "--stock"), str):
        row = Row(architecture, variant, "stock fails", found)
    path.unlink()
    return row


def read_row(architecture: str, variant: str, found: dict[str, Any] | str) -> Row:
    """A row of what a case found."""
    if isinstance(found, str):
        return Row(architecture, variant, "failed", found)
    layers = tuple(found["layers"])
    if found["refused"]:
        return Row(architecture, variant, "refused", found["refused"])
    if found["stock_varies"]:
        return Row(architecture, variant, "stock fails", "its own logits differ from run to run", layers)
    if found["failed"]:
        return Row(architecture, variant, "failed", "; ".join(found["failed"][:3]), layers)
    text = f"bit-exact in {found['exact']} settings, pruned in {found['pruned']}, saved and turns in {found['turns']}"
    text += f", moved in {found['moved']}" if found["moved"] else ", not moved"
    return Row(architecture, variant, "pruned", text, layers)


def merge(rows: list[Row]) -> Row:
    """Of one file's seeds, the worst."""
    order = ("failed", "stock fails", "refused", "no fixture", "pruned")
    return min(rows, key=lambda row: order.index(row.state))


def digest() -> str:
    """Of the files that decide what the table says."""
    found = hashlib.sha256()
    for name in DECIDING:
        found.update((ROOT / name).read_bytes())
    return found.hexdigest()[:16]


def kinds(layers: tuple[str, ...]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(layers).items())


def markdown(rows: list[Row], seeds: Sequence[int] = SEEDS) -> str:
    """The whole of docs/MODELS.md."""
    tested = [row for row in rows if row.state != "no fixture"]
    counts = Counter(row.state for row in tested)
    lines = [
        "# Models",
        "",
        "Written by `make conformance`; not to be edited. llama.cpp's own test (tests/test-llama-archs.cpp of the pinned release)",
        "makes a tiny random model of every architecture, mostly with 4 layers. Each runs through stock llama.cpp and through",
        "asl_gguf in one process (tests/conformance/case.py): nothing pruned (logits of the prompt and of 8 tokens after it, flash",
        "attention on and off, chunks of 32, 64 and 256 tokens, sliding caches of both sizes, f16 and q8_0 K/V), all tokens kept at",
        "each selection layer, and pruned under four policies (and `indexer` where layers have one), where chunks of another size",
        "may change nothing but rounding. In four settings a pruned state is saved, loaded and goes on, a second turn follows a",
        "whole and a pruned prompt, and a pruned prompt moves into a context where another sequence lives. Seeds of the weights:",
        f"{', '.join(map(str, seeds))}.",
        "",
        f"**{counts['pruned']} of {len(tested)} files are pruned**, bit-exact with nothing pruned (before 2026-11-28: {BEFORE});",
        f"{counts['refused']} are refused when the model is loaded, with the reason, and answered from the full cache;",
        f"stock llama.cpp itself ends in {counts['stock fails']}; {counts['failed']} failed.",
        f"Of {len(rows) - len(tested)} the test makes no model.",
        "",
        "Random weights say nothing about answers: layers above the selection never see the dropped tokens, recurrent states",
        "included. `asl-gguf eval --suite small -m FILE` measures a real model.",
        "",
        f"{DIGEST}{digest()}`.",
        "",
        "| architecture | layers of the test's model | |",
        "|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.architecture, row.variant)):
        text = row.text if row.state in ("pruned", "no fixture") else f"{row.state}: {row.text}"
        lines.append(f"| {row.architecture} ({row.variant}) | {kinds(row.layers)} | {text} |")
    return "\n".join(lines) + "\n"


class Known:
    """Rows in a file, of sources with one digest."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._rows = path, {}
        if path and path.exists() and (found := json.loads(path.read_text(encoding="utf-8")))["digest"] == digest():
            self._rows = found["rows"]

    def get(self, name: tuple[str, str], seed: int, make: Callable[[], Row]) -> Row:
        key = f"{' '.join(name)} {seed}"
        if key not in self._rows:
            self._rows[key] = asdict(make())
            if self._path:
                self._path.write_text(json.dumps({"digest": digest(), "rows": self._rows}, indent=1), encoding="utf-8")
        return Row(**{**self._rows[key], "layers": tuple(self._rows[key]["layers"])})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=Path, required=True, help="the program asl-archs")
    parser.add_argument("--only", default="", help="architectures that match this regular expression")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the table there")
    parser.add_argument(
        "--rows", type=Path, help="keep what was found there, and go on from it if the sources are the same"
    )
    arguments = parser.parse_args()
    listed = subprocess.run([str(arguments.archs), "--list"], capture_output=True, text=True, check=True).stdout
    names = [tuple(line.split()) for line in listed.splitlines()]
    names = [name for name in names if re.search(arguments.only, name[0])]
    rows: list[Row] = []
    known = Known(arguments.rows)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:

        def one_of(name: tuple[str, str], seed: int) -> Row:
            return known.get(name, seed, lambda: check(arguments.archs, *name, seed, Path(folder)))

        def one(name: tuple[str, str]) -> Row:
            row = merge([one_of(name, seed) for seed in arguments.seeds])
            print(f"{row.architecture} ({row.variant}): {row.state}: {row.text}", flush=True)
            return row

        rows = list(pool.map(one, names))
    if arguments.out:
        arguments.out.write_text(markdown(rows, arguments.seeds), encoding="utf-8")
    print(Counter(row.state for row in rows))
    return 1 if any(row.state == "failed" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
