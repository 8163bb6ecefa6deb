#!/usr/bin/env python3
"""docs/FIRST_MINUTES.md: what a newcomer types in a fresh clone, what comes back, and how long it takes.

    python3 bench/first_minutes.py > docs/FIRST_MINUTES.md

It clones this repository into a temporary folder and needs what README.md asks for, no package of ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

DOCUMENT = Path("/usr/share/common-licenses/Apache-2.0")  # every Debian has it
QUESTION = "Which version of the license is this?"
STEPS = (
    ("Two commands set everything up and show one prompt with and without pruning.", "make demo", 14),
    (
        "A model by name, and a question about a file of one's own.",
        ". .venv/bin/activate\nasl-gguf models pull MODEL",
        2,
    ),
    ("", f'asl-gguf run -m MODEL -n 24 \\\n    -f {DOCUMENT} -q "{QUESTION}"', 6),
    (
        "Is that what the whole document says? The same question from the full cache, and what else could be kept.",
        f'asl-gguf compare -m MODEL -n 24 --policies none,asl-span,snapkv \\\n    -f {DOCUMENT} -q "{QUESTION}"',
        12,
    ),
    (
        "A page with the kept text marked.",
        f'asl-gguf inspect -m MODEL \\\n    -f {DOCUMENT} -q "{QUESTION}" -o kept.html',
        3,
    ),
)
MODEL = "smollm2-135m-instruct"
WIDTH = 120


def run(command: str, folder: Path) -> tuple[str, float]:
    """What a command prints, both streams, and its seconds.

    Raises:
        SystemExit: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CMAKE_", "VIRTUAL_ENV"))}
    started = time.monotonic()
    shell = ". .venv/bin/activate; " if (folder / ".venv").exists() and not command.startswith("make") else ""
    done = subprocess.run(
        ["bash", "-c", shell + command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout, time.monotonic() - started


def processor() -> str:
    """As Linux names it, with its cores."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{found[1] if found else 'unknown'}, {os.cpu_count()} cores"


def filled(line: str) -> str:
    """Lines of at most WIDTH characters; of tables, as they are."""
    return line if "|" in line or "-+-" in line else textwrap.fill(line, WIDTH, break_on_hyphens=False)


def transcript() -> str:
    """The page."""
    root = Path(__file__).resolve().parents[1]
    began = (
        f"What `python3 bench/first_minutes.py` recorded in a fresh clone on a machine without a GPU ({processor()}): each "
        "command, the last lines that it printed, and its seconds by the clock. `make demo` compiles llama.cpp once; a "
        "wheel (`make wheel`) needs no compiler."
    )
    parts = ["# The first minutes", textwrap.fill(began, WIDTH, break_on_hyphens=False)]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "asl_gguf"
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        for words, command, n_lines in STEPS:
            command = command.replace("MODEL", MODEL)
            printed, seconds = run(command, clone)
            lines = [line for line in printed.replace(str(Path.home()), "~").splitlines() if line.strip()][-n_lines:]
            shown = re.sub("^(?! )", "$ ", command, flags=re.MULTILINE)  # lines that go on are indented
            parts += [words] * bool(words) + [
                f"```console\n{shown}\n" + "\n".join(map(filled, lines)) + f"\n```\n\n{seconds:.0f} s."
            ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(transcript())
