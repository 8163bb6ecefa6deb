"""Per-model values of ASL's min_layer and tau, and what `auto` goes by, stored and found again: `asl-gguf calibrate` measures
and chooses them.

A calibration is a JSON file in the user's configuration folder, named after the sha256 of the model file, or of a split
model's files one after the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..policies import ASL, Policy, make_policy, written_parameters
from ..policies.cut import Cut
from .cuts import StoredCut
from .files import replacing, xdg_folder
from .named import sha256_of
from .parts import parts_of

logger = logging.getLogger(__name__)

_CONFIG_VARIABLE = "ASL_GGUF_CONFIG_DIR"
_FORMAT = 2
_CALIBRATED = ("min_layer", "min_depth", "tau")


@dataclass(frozen=True)
class Means:
    """Outcomes of one pair of parameters, averaged over examples."""

    layer_easy: float
    """selection layer; the model's last one where nothing is selected"""
    layer_hard: float
    nll_loss: float
    """nats per token more than with the full cache"""
    quality_loss: float
    """`Profile.quality_loss`"""
    prefill_share: float


@dataclass(frozen=True)
class MeanProfile:
    """Profiles averaged over the easy and over the hard examples."""

    n_layer: int
    first_layer: int
    variance_easy: tuple[float, ...]
    """in squared ranks, of first_layer and of every layer after it"""
    variance_hard: tuple[float, ...]
    layers: tuple[int, ...]
    """selection layers of the lists below; the last one stands for no selection"""
    nll_loss_easy: tuple[float, ...]
    """nats per token more than with the full cache"""
    nll_loss_hard: tuple[float, ...]
    quality_loss: tuple[float, ...]
    prefill_share: tuple[float, ...]
    random_variance: float
    """rank variance of random ranks"""
    asked: tuple[int, ...] = ()
    """the layers of the variances, where others slide or hold a state; empty: first_layer and every layer after it"""

    @property
    def observed(self) -> tuple[int, ...]:
        """The layers of the variances."""
        return self.asked or tuple(range(self.first_layer, self.n_layer))


@dataclass(frozen=True)
class Calibration:
    """What is stored for a model file and a policy."""

    policy: str
    min_layer: int
    tau: float
    settings: dict[str, Any]
    """the policy's other parameters at the time: `settings_of`"""
    before: Means
    """with the policy's own parameters"""
    after: Means
    profile: MeanProfile
    tradeoff: float
    budget: float | int
    tokens: int
    samples: int
    easy: tuple[str, ...]
    """tasks"""
    hard: tuple[str, ...]
    version: str
    """of this package"""

    @property
    def summary(self) -> str:
        """One line for reports."""
        return f"min_layer {self.min_layer}, tau {self.tau:g}, from asl-gguf calibrate with tradeoff {self.tradeoff:g}"


def settings_of(policy: Policy) -> dict[str, Any]:
    """The parameters of a policy that a calibration rests on and does not replace."""
    return {name: value for name, value in asdict(policy).items() if name not in _CALIBRATED}


def calibrated(
    given: str | Policy, model_path: str | Path, *, enabled: bool = True
) -> tuple[Policy, Calibration | None]:
    """The policy with the stored min_layer and tau of this model file, and where they come from.

    A policy object is returned as it is, and so is every policy where nothing is stored or what is stored was measured
    with other parameters of the policy (an older version's defaults). Parameters that are written out in the policy's
    name stand: min_layer and tau were chosen together, so neither is taken if one of them, or min_depth, is written.

    Args:
        given: name of a policy, with or without parameters, or an object.

    Raises:
        OptionError: the name or a parameter is unknown.
        ModelError: the calibration of this model is corrupt.
    """
    policy = make_policy(given)
    if isinstance(given, Policy) or not isinstance(policy, ASL) or not enabled:
        return policy, None
    if not written_parameters(given).isdisjoint(_CALIBRATED):
        return policy, None
    found = load(model_path, policy.name)
    if found is None:
        return policy, None
    if found.settings != settings_of(policy):
        logger.warning(
            "ignoring the calibration of %s for %s: asl_gguf %s measured it with other parameters of the policy; "
            "run `asl-gguf calibrate` again",
            policy.name,
            Path(model_path).name,
            found.version,
        )
        return policy, None
    return replace(policy, min_layer=found.min_layer, tau=found.tau), found


def config_dir() -> Path:
    """The folder of calibrations: $ASL_GGUF_CONFIG_DIR, or asl_gguf in the user's configuration folder.

    The folder need not exist. Raises ModelError when the user has no home folder.
    """
    try:
        if chosen := os.environ.get(_CONFIG_VARIABLE):
            return Path(chosen).expanduser()
        if sys.platform == "win32":
            roaming = os.environ.get("APPDATA")
            return (Path(roaming) if roaming else Path.home() / "AppData" / "Roaming") / "asl_gguf"
        return xdg_folder("XDG_CONFIG_HOME", ".config") / "asl_gguf"
    except RuntimeError as error:
        raise ModelError(
            f"expected a home folder for calibrations, got none ({error}); "
            f"set {_CONFIG_VARIABLE} to a folder that can be written"
        ) from error


@dataclass
class _Store:
    """One calibration file: a model's calibrations by policy, and hashes of files of the model's size."""

    sha256: str
    size: int
    files: list[dict[str, Any]]
    """name, size, mtime_ns and sha256 of files that were hashed, so that they need not be again"""
    calibrations: dict[str, Calibration]
    cuts: dict[str, StoredCut] = field(default_factory=dict)
    """by policy; older files have none"""


def cut_of(policy: Policy, model_path: str | Path, *, enabled: bool = True) -> Cut | None:
    """What `auto` goes by on this model file, None if nothing is stored or it was found with other parameters of the policy.

    Raises:
        ModelError: the calibration of this model is corrupt.
    """
    store = _store_of(Path(model_path)) if enabled and policy.decides_late else None
    found = store.cuts.get(policy.name) if store else None
    if found is None:
        return None
    if found.settings != asdict(policy):
        logger.warning(
            "auto keeps its upper limit on %s: what it goes by was found with other parameters of %s; run `asl-gguf calibrate` "
            "with these",
            Path(model_path).name,
            policy.name,
        )
        return None
    return found.found.cut


def load(model_path: str | Path, policy_name: str) -> Calibration | None:
    """The stored calibration of a model file for a policy, None if there is none.

    The file is hashed only if a model of its size has been calibrated, and then once.

    Raises:
        ModelError: the calibration file of this model is corrupt.
    """
    path = Path(model_path)
    store = _store_of(path)
    found = store.calibrations.get(policy_name) if store else None
    if store and found and (n_layer := _n_layer(path)) is not None and found.min_layer >= n_layer:
        raise _damaged(
            config_dir() / _file_name(store.sha256),
            f"min_layer {found.min_layer} for a model with layers 0 to {n_layer - 1}",
        )
    return found


def _store_of(path: Path) -> _Store | None:
    """What is stored for a model file. Raises ModelError where that is corrupt."""
    try:
        stores, corrupt = _read_all(config_dir())
    except ModelError:  # no home folder: nothing is stored there
        return None
    size = _file_entry(path, "")["size"]
    if not corrupt and all(store.size != size for store in stores):
        return None
    sha256 = _sha256(path, stores)
    if (error := corrupt.get(_file_name(sha256))) is not None:
        raise error
    for name in corrupt:
        logger.warning("%s is corrupt, and not of this model; delete it: %s", name, config_dir() / name)
    return next((store for store in stores if store.sha256 == sha256), None)


def _n_layer(path: Path) -> int | None:
    """Layers of a model; None where its header does not say."""
    from .gguf_header import n_layer

    try:
        return n_layer(str(path))
    except ModelError:  # whoever loads it says so
        return None


def _damaged(path: Path, what: object) -> ModelError:
    return ModelError(
        f"expected a calibration of format {_FORMAT} in {path}, got {what}; "
        "run `asl-gguf calibrate` for this model again, or delete the file"
    )


def save(model_path: str | Path, calibration: Calibration) -> Path:
    """Stores a calibration in place of an older one of the same model and policy. Returns its file.

    Raises:
        ModelError: the file cannot be written.
    """
    store = _store_to_change(Path(model_path))
    store.calibrations[calibration.policy] = calibration
    return _write(store)


def save_cut(model_path: str | Path, policy: str, found: StoredCut) -> Path:
    """Stores what `auto` goes by under a policy. Returns its file.

    Raises:
        ModelError: the file cannot be written.
    """
    store = _store_to_change(Path(model_path))
    store.cuts[policy] = found
    return _write(store)


def forget_cut(model_path: str | Path, policy: str) -> None:
    """What `auto` went by under a policy, if anything is stored.

    Raises:
        ModelError: the file cannot be written.
    """
    store = _store_to_change(Path(model_path))
    if store.cuts.pop(policy, None) is not None:
        _write(store)


def _store_to_change(path: Path) -> _Store:
    entry = _file_entry(path, sha256 := _sha256(path, _read_all(config_dir())[0]))
    new = _Store(sha256, entry["size"], [entry], {})
    return next((store for store in _read_all(config_dir())[0] if store.sha256 == sha256), new)  # hashing took long


def _file_name(sha256: str) -> str:
    return f"calibration-{sha256[:16]}.json"


def _file_entry(path: Path, sha256: str) -> dict[str, Any]:
    stats = [part.stat() for part in parts_of(path)]
    size, newest = sum(one.st_size for one in stats), max(one.st_mtime_ns for one in stats)
    return {"name": path.name, "size": size, "mtime_ns": newest, "sha256": sha256}


def _sha256(path: Path, stores: list[_Store]) -> str:
    """The file's sha256, from the stores if one of them knows the file; else one of them will from now on."""
    size = _file_entry(path, "")["size"]
    same_size = [store for store in stores if store.size == size]
    for entry in (entry for store in same_size for entry in store.files):
        if entry == _file_entry(path, entry["sha256"]):
            return str(entry["sha256"])
    sha256 = sha256_of(*parts_of(path))
    now = {store.sha256: store for store in _read_all(config_dir())[0]} if same_size else {}
    for store in [now[old.sha256] for old in same_size if old.sha256 in now][:1]:  # with what was stored meanwhile
        store.files.append(_file_entry(path, sha256))
        with contextlib.suppress(ModelError):  # a folder that cannot be written costs another hash the next time
            _write(store)
    return sha256


def _read_all(folder: Path) -> tuple[list[_Store], dict[str, ModelError]]:
    """The calibration files of a folder, and by name the errors of those that are corrupt."""
    stores, corrupt = [], {}
    for path in sorted(folder.glob("calibration-*.json")):
        try:
            stores.append(_read(path))
        except ModelError as error:
            corrupt[path.name] = error
    return stores, corrupt


def _read(path: Path) -> _Store:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']}")
        if _file_name(data["sha256"]) != path.name:
            raise ValueError(f"the sha256 of another model, {data['sha256']}")
        files = [{name: entry[name] for name in _FILE_ENTRY} for entry in data["files"]]
        for entry in files:
            _check_types(_FILE_ENTRY, entry)
        _check_types({"size": "int"}, data)
        calibrations = {name: _calibration(name, entry) for name, entry in data["calibrations"].items()}
        cuts = {name: StoredCut.parse(entry) for name, entry in data.get("cuts", {}).items()}
        return _Store(data["sha256"], data["size"], files, calibrations, cuts)
    # Whatever is wrong with one file: other models are not stopped by it.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _calibration(name: str, entry: dict[str, Any]) -> Calibration:
    """Raises ValueError, LookupError or TypeError for what `save` would not have written."""
    parts: dict[str, Any] = {"before": Means, "after": Means, "profile": MeanProfile}
    made = {key: make(**_with_tuples(entry[key])) for key, make in parts.items()}
    found = Calibration(**(_with_tuples(entry) | made))
    for part in (found, *made.values()):
        _check_types({one.name: str(one.type) for one in fields(part)}, vars(part))
    ASL(min_layer=found.min_layer, obs_layers=found.settings["obs_layers"], tau=found.tau)  # checks both
    if found.min_layer >= found.profile.n_layer:
        raise ValueError(f"min_layer {found.min_layer} of a model with layers 0 to {found.profile.n_layer - 1}")
    if found.policy != name:
        raise ValueError(f"a calibration of {found.policy!r} under {name!r}")
    return found


_FILE_ENTRY = {"name": "str", "size": "int", "mtime_ns": "int", "sha256": "str"}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "float | int": (int, float), "dict[str, Any]": (dict,)
}  # fmt: skip
_PARTS = {"Means": Means, "MeanProfile": MeanProfile}


def _check_types(expected: dict[str, str], values: Mapping[str, Any]) -> None:
    """Raises TypeError for a value of another type than its annotation."""
    for name, kind in expected.items():
        if kind in _PARTS:
            continue
        is_tuple = kind.startswith("tuple[")
        types = _TYPES[kind.removeprefix("tuple[").removesuffix(", ...]")]
        if is_tuple and not isinstance(values[name], tuple):
            raise TypeError(f"{name} {values[name]!r:.80}")
        for value in values[name] if is_tuple else (values[name],):
            if not isinstance(value, types) or isinstance(value, bool):
                raise TypeError(f"{name} {value!r:.80}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _write(store: _Store) -> Path:
    """Gives the file its name when it is complete and on disk. Raises ModelError if it cannot be written."""
    data = {"format": _FORMAT, **asdict(store)}
    path = config_dir() / _file_name(store.sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(data, indent=1).encode("utf-8"))
    except OSError as error:
        raise ModelError(
            f"expected to write a calibration under {path.parent}, got {type(error).__name__}: {error}; "
            f"make it writable, or set {_CONFIG_VARIABLE} to another folder"
        ) from error
    return path
