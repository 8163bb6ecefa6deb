"""Calibrations that are stored for a model file: found again by its bytes, refused where they are damaged, taken by name."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from asl_gguf.errors import ModelError
from asl_gguf.models import calibration, named
from asl_gguf.models.calibration import calibrated, cut_of, forget_cut, load, save, save_cut, settings_of
from asl_gguf.models.cuts import FoundCut, StoredCut
from asl_gguf.policies import ASL, SnapKV, SpanASL, make_policy
from asl_gguf.policies.cut import Cut
from profiles import make_calibration


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names: list[str] = []

    def sha256_of(path: Path) -> str:
        names.append(path.name)
        return named.sha256_of(path)

    monkeypatch.setattr(calibration, "sha256_of", sha256_of)
    return names


def test_round_trip(config, file, hashed):
    assert load(file, "asl-span") is None and hashed == []
    stored = make_calibration()
    path = save(file, stored)
    assert path.parent == config and re.fullmatch(r"calibration-[0-9a-f]{16}\.json", path.name)
    assert [entry.name for entry in config.iterdir()] == [path.name]  # nothing temporary is left
    assert load(file, "asl-span") == stored == load(str(file), "asl-span")
    assert load(file, "asl") is None
    other = make_calibration("asl", min_layer=9)
    assert save(file, other) == path
    newer = make_calibration(tau=0.125)
    save(file, newer)
    assert (load(file, "asl"), load(file, "asl-span")) == (other, newer)
    assert hashed == ["model.gguf"]


@pytest.mark.parametrize(
    "work", [lambda file: load(file, "asl-span"), lambda file: save(file, make_calibration("asl-span"))]
)
def test_what_others_store_while_a_file_is_hashed(config, file, monkeypatch, work):
    """Of a large model that takes a minute."""
    save(file, make_calibration())
    other = make_calibration("asl", min_layer=9)

    def sha256_of(path: Path) -> str:
        monkeypatch.undo()
        monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(config))
        save(path, other)
        return named.sha256_of(path)

    os.utime(file, (1, 1))
    monkeypatch.setattr(calibration, "sha256_of", sha256_of)
    work(file)
    assert (load(file, "asl"), load(file, "asl-span")) == (other, make_calibration())


def test_another_model(config, file, hashed):
    save(file, make_calibration())
    longer = file.with_name("longer.gguf")
    longer.write_bytes(file.read_bytes() + b"1")
    same_size = file.with_name("other.gguf")
    same_size.write_bytes(b"GGUF" + bytes(999) + b"1")
    for path in (longer, same_size, same_size):
        assert load(path, "asl-span") is None
    assert hashed == ["model.gguf", "other.gguf"]  # only what has the size of a known one, and once
    save(same_size, make_calibration(tau=0.125))
    found = [load(path, "asl-span").tau for path in (file, same_size)]
    assert found == [make_calibration().tau, 0.125] and hashed == ["model.gguf", "other.gguf"]


def test_a_copy_of_the_model(config, file, hashed):
    save(file, make_calibration())
    copy = file.rename(file.with_name("copy.gguf"))
    os.utime(copy, (1e9, 1e9))
    for _ in range(2):
        assert load(copy, "asl-span") == make_calibration()
    assert hashed == ["model.gguf", "copy.gguf"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: re.sub(r'"tau": [\d.]+', '"tau": "x"', text),
        lambda text: re.sub(r'"min_layer": \d+', '"min_layer": 1', text),
        lambda text: text.replace('"tradeoff"', '"traderoff"'),
        lambda text: re.sub(r'"sha256": "....', '"sha256": "0000', text),
    ],
    ids=["half", "list", "format", "tau", "min_layer", "name", "sha256"],
)
def test_a_corrupt_file(config, file, damage):
    path = save(file, make_calibration())
    path.write_text(damage(path.read_text()))
    with pytest.raises(ModelError, match=r"(?s)expected a calibration .*, got .*; run `asl-gguf calibrate`.*or delete"):
        load(file, "asl-span")
    other = file.with_name("other.gguf")
    other.write_bytes(b"GGUF")
    assert load(other, "asl-span") is None
    save(file, make_calibration())
    assert load(file, "asl-span") == make_calibration()


def test_a_folder_that_cannot_be_written(tmp_path, file, monkeypatch):
    (tmp_path / "config").write_text("a file")
    monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(tmp_path / "config"))
    assert load(file, "asl-span") is None
    with pytest.raises(ModelError, match="expected to write .*ASL_GGUF_CONFIG_DIR"):
        save(file, make_calibration())


def test_config_dir(monkeypatch, tmp_path):
    for name in ("ASL_GGUF_CONFIG_DIR", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(calibration, "sys", SimpleNamespace(platform="linux"))
    assert calibration.config_dir() == tmp_path / ".config" / "asl_gguf"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert calibration.config_dir() == tmp_path / ".config" / "asl_gguf"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert calibration.config_dir() == tmp_path / "xdg" / "asl_gguf"
    monkeypatch.setattr(calibration, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "roaming"))
    assert calibration.config_dir() == tmp_path / "roaming" / "asl_gguf"
    monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(tmp_path / "own"))
    assert calibration.config_dir() == tmp_path / "own"


def test_what_takes_a_calibration(config, file, caplog):
    stored = make_calibration(min_layer=12, tau=0.125)
    save(file, stored)
    policy, found = calibrated("asl-span", file)
    assert policy == SpanASL(min_layer=12, tau=0.125) and found == stored
    assert calibrated(SpanASL(), file) == (SpanASL(), None)
    assert calibrated("asl-span", file, enabled=False) == (SpanASL(), None)
    for name in ("asl", "snapkv", "none"):
        assert calibrated(name, file) == (make_policy(name), None)
    assert not caplog.records
    save(file, replace(stored, settings=settings_of(SpanASL(obs_tokens=32))))
    assert calibrated("asl-span", file) == (SpanASL(), None)
    assert "asl-gguf calibrate" in caplog.text


CUT = Cut(11, 3, False, 0.296, 1.0)
STORED = StoredCut.of(FoundCut(CUT, -0.01, 0.25, 0.4, 36), SpanASL(), "0")


def test_what_auto_goes_by(config, file, caplog):
    assert cut_of(SpanASL(), file) is None
    forget_cut(file, "asl-span")
    assert not config.exists()
    save_cut(file, "asl-span", STORED)
    assert cut_of(SpanASL(), file) == CUT and load(file, "asl-span") is None
    assert cut_of(SpanASL(), file, enabled=False) is None
    assert cut_of(ASL(), file) is None and cut_of(SnapKV(), file) is None and not caplog.records
    assert cut_of(SpanASL(tau=0.5), file) is None and "run `asl-gguf calibrate` with these" in caplog.text
    save(file, make_calibration())  # layers and cut do not touch each other
    assert cut_of(SpanASL(), file) == CUT
    forget_cut(file, "asl-span")
    assert cut_of(SpanASL(), file) is None and load(file, "asl-span") == make_calibration()


def test_a_file_from_before_there_were_cuts(config, file):
    path = save(file, make_calibration())
    path.write_text(re.sub(r',\s*"cuts": {}', "", path.read_text()))
    assert "cuts" not in path.read_text()
    assert load(file, "asl-span") == make_calibration() and cut_of(SpanASL(), file) is None


@pytest.mark.parametrize(
    "was, damaged",
    [
        ('"head": 3', '"head": -1'),
        ('"head": 3', '"had": 3'),
        ('"above": false', '"above": "no"'),
        ('"threshold": 0.296', '"threshold": NaN'),
        ('"threshold": 0.296', '"threshold": 29.6'),
        ('"prompts": 36', '"prompts": 0'),
        ('"kept": 0.25', '"kept": "x"'),
        ('"settings": {', '"settings": 1, "other": {'),
        ('"cuts": {', '"cuts": [], "other": {'),
    ],
)
def test_a_corrupt_cut(config, file, was, damaged):
    path = save_cut(file, "asl-span", STORED)
    assert was in path.read_text()
    path.write_text(path.read_text().replace(was, damaged))
    with pytest.raises(ModelError, match=r"(?s)expected a calibration .*, got .*; run `asl-gguf calibrate`.*or delete"):
        cut_of(SpanASL(), file)
