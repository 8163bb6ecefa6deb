"""Models that Ollama has pulled: `ollama:NAME[:TAG]`, or the path of a manifest or of its folder -> the GGUF blob.

Ollama keeps a manifest for each tag, which lists layers by their digests, and the layers as blobs named after those:

    MODELS/manifests/registry.ollama.ai/library/llama3.2/3b
    MODELS/blobs/sha256-dde5aa3f...

Nothing is fetched. The model's weights are used alone: its template and parameters are those of the GGUF file and ours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ModelError

PREFIX = "ollama:"
_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_NAME = re.compile(r"(?:(?:([\w.-]+(?::\d+)?)/)?([\w.-]+)/)?([\w.-]+)(?::([\w.-]+))?")
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_SERVICE = Path("/usr/share/ollama/.ollama/models")
"""where the service of Ollama's Linux package keeps them"""


def models_folder() -> Path:
    """$OLLAMA_MODELS, or Ollama's folder in the user's home, or that of its Linux service.

    Raises:
        ModelError: there is none.
    """
    chosen = os.environ.get("OLLAMA_MODELS")
    try:
        if chosen:
            return Path(chosen).expanduser()
        folders = [Path.home() / ".ollama" / "models", _SERVICE]
    except RuntimeError as err:
        if chosen:
            raise ModelError(f"expected OLLAMA_MODELS to name a folder, got {chosen!r:.120}: {err}") from err
        folders = [_SERVICE]
    for folder in folders:
        if os.path.isdir(folder / "manifests"):  # no, where the folder is closed to this user
            return folder
    raise ModelError(
        f"expected Ollama's models in {' or '.join(map(str, folders))}, found none; set OLLAMA_MODELS to their folder"
    )


def named(name: str) -> Path:
    """The blob of a pulled model.

    Args:
        name: as `ollama run` takes it: NAME, NAME:TAG, USER/NAME, HOST/USER/NAME:TAG.

    Raises:
        ModelError: the name is malformed, no such model is pulled, or its manifest is none of one GGUF file.
    """
    match = _NAME.fullmatch(name)
    if match is None or any(part and set(part) == {"."} for part in match.groups()):
        raise ModelError(f"expected {PREFIX}NAME or {PREFIX}NAME:TAG, got {PREFIX + name!r:.120}")
    host, user, model, tag = match.groups()
    models = models_folder()
    manifest = models / "manifests" / (host or _REGISTRY) / (user or _NAMESPACE) / model / (tag or _TAG)
    if not manifest.is_file():
        pulled = ", ".join(sorted(_pulled(models))[:8]) or "none"
        raise ModelError(
            f"expected a model that Ollama has pulled to {models}, got {name!r:.120}; run `ollama pull {name:.120}`, or use "
            f"one of: {pulled}"
        )
    return blob_of(manifest)


def _pulled(models: Path) -> Iterator[str]:
    """Names of the models that are there."""
    root = models / "manifests"
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if len(parts) == 4 and path.is_file():
            host, user, model, tag = parts
            where = "" if host == _REGISTRY else f"{host}/"
            yield f"{where}{'' if user == _NAMESPACE and not where else f'{user}/'}{model}:{tag}"


def find_manifest(path: Path) -> Path | None:
    """The manifest that a path stands for: itself, or the one of a model's folder (`latest`, or the only one).

    Returns:
        None: the path does not lie below a folder `manifests` that has `blobs` beside it, or is a GGUF file.

    Raises:
        ModelError: the folder has several, none of them `latest`.
    """
    if _models_of(path) is None or not path.exists():
        return None
    if not path.is_dir():
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return path if file.read(4) != b"GGUF" else None
    tags = sorted(tag for tag in path.iterdir() if tag.is_file())
    found = tags if len(tags) == 1 else [tag for tag in tags if tag.name == _TAG]
    if tags and not found:
        names = ", ".join(tag.name for tag in tags)
        raise ModelError(
            f"expected the folder of a model with one tag, or the tag {_TAG}, got {path} with {names}; name one"
        )
    return found[0] if found else None


def _models_of(manifest: Path) -> Path | None:
    """The folder that holds a manifest and its blobs."""
    roots = (folder.parent for folder in manifest.absolute().parents if folder.name == "manifests")
    return next((root for root in roots if (root / "blobs").is_dir()), None)


def blob_of(manifest: Path) -> Path:
    """The GGUF file of a manifest.

    Raises:
        ModelError: it is no manifest of one GGUF file, or the blob is not there, or not whole.
    """
    layers = _layers(manifest)
    kinds = [str(layer.get("mediaType", "")).removeprefix(_LAYER) for layer in layers]
    weights = [layer for layer, kind in zip(layers, kinds) if kind == "model"]
    if len(weights) != 1:
        raise ModelError(f"expected a manifest with one GGUF file of weights, got {len(weights)} in {manifest}")
    if "adapter" in kinds:
        raise ModelError(
            f"expected a model without a LoRA adapter, {manifest} has one; pass the paths of both blobs, model_path and lora_path"
        )
    digest = _DIGEST.fullmatch(str(weights[0].get("digest", "")))
    if digest is None:
        raise ModelError(f"expected a digest sha256:..., got {weights[0].get('digest')!r:.80} in {manifest}")
    models = _models_of(manifest) or models_folder()
    blob, size = models / "blobs" / f"sha256-{digest[1]}", weights[0].get("size")
    got = blob.stat().st_size if blob.is_file() else None
    if got is None or (isinstance(size, int) and got != size):
        there = "no such file" if got is None else f"one of {got:,} bytes"
        raise ModelError(
            f"expected a blob of {size} bytes, {blob}, got {there}; pull the model again with `ollama pull`"
        )
    return blob


def _layers(manifest: Path) -> list[dict[str, Any]]:
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise ValueError("layers are no list of objects")
        return layers
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise ModelError(f"expected a manifest of Ollama, got {type(err).__name__}: {err}: {manifest}") from err
