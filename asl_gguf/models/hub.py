"""GGUF models on Hugging Face, named as llama.cpp's `-hf` names them: USER/REPO[:QUANT].

The package huggingface_hub fetches the files, which then lie in its cache: its login, proxy and mirror settings apply.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DownloadError, ModelError
from .parts import names_of

_DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
"""llama.cpp's, in this order; after them the first file"""
_NO_MODEL = re.compile(r"(^|[-./_])(mmproj|imatrix)", re.IGNORECASE)


def fetch(name: str) -> Path:
    """The model's file, or the first of its parts; fetched unless the cache has it. Without a network the cache serves.

    Raises:
        ModelError: the name is malformed, or the repository has no such file.
        DownloadError: huggingface_hub is missing, or the repository cannot be reached.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", name)
    if match is None:
        raise ModelError(f"-hf: expected USER/REPO or USER/REPO:QUANT, got {name!r}")
    repo, quant = match[1], match[2]
    hub = _huggingface_hub()
    try:
        files = sorted(hub.list_repo_files(repo))
    except Exception as err:  # of its own, of the HTTP library, of the operating system
        files = _cached_files(hub, repo)
        if not files:
            raise _unreachable(repo, err) from err
    chosen = choose(files, quant)
    if not chosen:
        quants = [file for file in files if _is_model(file)]
        wanted = f"a GGUF file of {quant}" if quant else "a GGUF file"
        raise ModelError(f"-hf: expected {wanted} in {repo}, got {', '.join(quants[:8]) or 'none'}; name one of them")
    try:
        paths = [Path(hub.hf_hub_download(repo_id=repo, filename=file)) for file in chosen]
    except Exception as err:
        raise _unreachable(repo, err) from err
    return paths[0]


def choose(files: Sequence[str], quant: str | None) -> list[str]:
    """The files of one model among those of a repository: one, or all its parts in order; none if there is no such model.

    Args:
        quant: as in `Q4_K_M`, in any case; None: llama.cpp's defaults.
    """
    models = [file for file in files if _is_model(file)]
    found = next((one for tag in ([quant] if quant else _DEFAULT_QUANTS) if (one := _of_quant(models, tag))), None)
    first = found or (models[0] if models and not quant else None)
    if first is None:
        return []
    return names_of(first)


def _cached_files(hub: Any, repo: str) -> list[str]:
    """Files of the repository that were fetched before."""
    try:
        folder = Path(hub.snapshot_download(repo_id=repo, local_files_only=True))
    except Exception:  # none were
        return []
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _is_model(file: str) -> bool:
    return file.lower().endswith(".gguf") and not _NO_MODEL.search(file)


def _of_quant(models: Sequence[str], quant: str) -> str | None:
    pattern = re.compile(rf"(^|[-._/]){re.escape(quant)}([-./]|$)", re.IGNORECASE)
    return next((file for file in models if pattern.search(file)), None)


def _huggingface_hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise DownloadError(
            "-hf: expected the package huggingface_hub, found none; run pip install huggingface_hub, or fetch the GGUF "
            "file and pass it with -m"
        ) from None


def _unreachable(repo: str, err: Exception) -> DownloadError:
    return DownloadError(
        f"-hf: expected {repo} on Hugging Face, got {type(err).__name__}: {' '.join(str(err).split())[:300]}; check the "
        "name and the network, or fetch the GGUF file and pass it with -m"
    )
