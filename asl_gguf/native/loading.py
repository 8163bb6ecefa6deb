"""Which llama.cpp library this process uses: ours, and no other.

`llama_cpp` loads its library when it is imported, from the folder in LLAMA_CPP_LIB_PATH. The ctypes
structs of one llama-cpp-python release fit one version of llama.cpp, so both are pinned together.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..errors import LibraryError
from .selecting import ENV, library_in, point_to

_ENV_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS = "1000"
"""rounds that a thread of libgomp spins at a barrier before it sleeps: enough where the others run, and where another
process has their core, spinning for milliseconds takes what they wait for"""

_GGML_WARNING = 3
"""GGML_LOG_LEVEL_WARN"""

waiting = "the library is not loaded"
"""how OpenMP's threads wait for each other, and who chose it"""


def library_file(folder: Path) -> Path:
    """Path of libllama in a folder, under the platform's name for it."""
    return Path(library_in(str(folder)))


def library_folder(package_paths: list[str]) -> Path:
    """The folder that holds our libllama.

    An editable install keeps the sources and the built libraries in two folders; both are on the
    package's search path.

    Raises:
        LibraryError: no folder has one.
    """
    override = os.environ.get(ENV)
    folders = [Path(override)] if override else [Path(path) / "lib" for path in package_paths]
    for folder in folders:
        if library_file(folder).exists():
            return folder.resolve()
    source = f"{ENV}={override}" if override else "the installed package"
    raise LibraryError(
        f"expected {library_file(folders[0]).name} in {' or '.join(map(str, folders))} ({source}), found none. "
        + (
            f"Unset {ENV}."
            if override
            else "Install the package with pip (it builds the library), or run `make build`."
        )
    )


def pinned_version(folder: Path) -> str:
    """llama-cpp-python version that the library in `folder` was built for."""
    try:
        name, version = (folder / "LLAMA_CPP_VERSION").read_text().splitlines()[0].split()
    except (OSError, IndexError, ValueError) as err:
        raise LibraryError(
            f"expected a file LLAMA_CPP_VERSION that says 'llama-cpp-python VERSION' in {folder}; reinstall asl_gguf"
        ) from err
    return version if name == "llama-cpp-python" else f"of {name}"


def _maps_libgomp() -> bool:
    """Whether another package has loaded OpenMP, which reads its variables once."""
    try:
        return "libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False


@contextmanager
def short_spinning() -> Iterator[None]:
    """What loads libgomp in here sets how its threads wait, unless the environment says. Child processes inherit nothing."""
    global waiting
    if chosen := [f"{name}={os.environ[name]}" for name in _ENV_WAITING if name in os.environ]:
        waiting = f"{', '.join(chosen)} (environment)"
        yield
        return
    if _maps_libgomp():
        waiting = (
            f"as libgomp does: it was loaded before asl_gguf. Set {_ENV_WAITING[1]}={_SPINS}, or import asl_gguf first"
        )
        yield
        return
    os.environ[_ENV_WAITING[1]] = _SPINS
    try:
        yield
        waiting = f"threads spin {int(_SPINS):,} rounds, then sleep ({_ENV_WAITING[1]} says otherwise)"
    finally:
        del os.environ[_ENV_WAITING[1]]


def _silence_warnings(logger: ModuleType) -> None:
    """llama_cpp takes ggml's level of warnings for that of errors, and prints them where verbose=False asks for silence."""
    logger.GGML_LOG_LEVEL_TO_LOGGING_LEVEL[_GGML_WARNING] = logging.WARNING


def load(package_paths: list[str]) -> ModuleType:
    """Imports `llama_cpp` on top of our library and returns it.

    Raises:
        LibraryError: the library is missing, of another version, or `llama_cpp` was imported before
            on top of another one.
    """
    folder = library_folder(package_paths)
    loaded = sys.modules.get("llama_cpp.llama_cpp")
    if loaded is not None and Path(loaded._base_path).resolve() != folder:
        raise LibraryError(
            f"llama_cpp was imported before asl_gguf and uses the library in {loaded._base_path}. "
            "Import asl_gguf first; its library serves plain llama_cpp as well."
        )
    point_to(str(folder))
    try:
        with short_spinning():
            import llama_cpp

            _silence_warnings(llama_cpp._logger)
            _load_backends(folder)
    except ImportError as err:
        raise LibraryError(
            f"llama-cpp-python cannot be imported ({err}); install it with `pip install -r requirements.txt`"
        ) from err
    except (OSError, RuntimeError) as err:
        raise LibraryError(
            f"{library_file(folder)} cannot be loaded: {err}. Reinstall asl_gguf on this machine."
        ) from err
    expected = pinned_version(folder)
    if llama_cpp.__version__ != expected:
        raise LibraryError(
            f"expected llama-cpp-python {expected} (the library was built for it), got {llama_cpp.__version__}. "
            f"Install llama-cpp-python=={expected} as in requirements.txt."
        )
    return llama_cpp


def cpu_variants(folder: Path) -> list[str]:
    """Names of the CPU backends in a folder of which ggml loads the best for the machine; none: it is linked in."""
    return sorted(path.stem.partition("ggml-cpu-")[2] for path in folder.glob("*ggml-cpu-*"))


def _load_backends(folder: Path) -> None:
    """Has ggml choose and load the backends of a build that keeps them in libraries of their own (GGML_BACKEND_DL).

    By this path, and never from the working directory or beside the interpreter, where ggml itself would look.
    """
    if not cpu_variants(folder):
        return
    names = {"win32": "ggml.dll", "darwin": "libggml.dylib"}
    load_all = ctypes.CDLL(str(folder / names.get(sys.platform, "libggml.so"))).ggml_backend_load_all_from_path
    load_all.argtypes, load_all.restype = [ctypes.c_char_p], None
    # llama_cpp prints what it is told until a `Llama` says whether it is verbose
    logger = logging.getLogger("llama-cpp-python")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        load_all(os.fsencode(folder))
    finally:
        logger.setLevel(level)


def cpu_variant(folder: Path) -> str | None:
    """Which of `cpu_variants` this process has loaded; None where that cannot be told, or there is one alone."""
    try:
        loaded = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    return next((name for name in cpu_variants(folder) if f"ggml-cpu-{name}." in loaded), None)


def has_symbol(library: ctypes.CDLL, name: str) -> bool:
    """Whether a loaded library exports a function."""
    try:
        getattr(library, name)
    except AttributeError:
        return False
    return True
