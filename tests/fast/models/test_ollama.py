"""Models that Ollama has pulled: names, manifests and their folders, on a stand-in of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from asl_gguf import Llama
from asl_gguf.errors import ModelError
from asl_gguf.models import named, ollama
from chats import command

LAYER = "application/vnd.ollama.image."


def put(models: Path, name: str, data: bytes, *kinds: str, size: int | None = None) -> Path:
    """Stores a model as `ollama pull` does; `name`: below manifests. Returns its manifest."""
    digest = hashlib.sha256(data).hexdigest()
    blob, manifest = models / "blobs" / f"sha256-{digest}", models / "manifests" / name
    for path in (blob, manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    layers = [
        {"mediaType": LAYER + kind, "digest": f"sha256:{digest}", "size": size or len(data)}
        for kind in (kinds or ("model", "template", "params", "license"))
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return manifest


LLAMA = "registry.ollama.ai/library/llama3.2"


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    put(tmp_path / "models", f"{LLAMA}/3b", b"GGUF 3b")
    put(tmp_path / "models", f"{LLAMA}/latest", b"GGUF latest")
    put(tmp_path / "models", "registry.ollama.ai/someone/theirs/latest", b"GGUF theirs")
    put(tmp_path / "models", "hf.co/bartowski/Llama-3.2-GGUF/Q4_K_M", b"GGUF hub")
    return tmp_path / "models"


NAMES = {
    "llama3.2:3b": "3b",
    "llama3.2": "latest",
    "library/llama3.2:3b": "3b",
    "someone/theirs": "theirs",
    "registry.ollama.ai/someone/theirs:latest": "theirs",
    "hf.co/bartowski/Llama-3.2-GGUF:Q4_K_M": "hub",
}


@pytest.mark.parametrize("name, content", NAMES.items())
def test_names(models, name, content):
    path = named.resolve(f"ollama:{name}")
    assert path.read_bytes() == f"GGUF {content}".encode() and path.parent == models / "blobs"


def test_manifests_and_their_folders(models, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS")
    root = models / "manifests"
    found = {
        f"{LLAMA}/3b": "3b",
        LLAMA: "latest",
        "hf.co/bartowski/Llama-3.2-GGUF": "hub",  # its only tag
        "registry.ollama.ai/someone/theirs/latest": "theirs",
    }
    for place, content in found.items():
        assert named.resolve(root / place).read_bytes() == f"GGUF {content}".encode()


def test_folders_without_one_tag(models):
    put(models, "registry.ollama.ai/library/two/a", b"GGUF a")
    put(models, "registry.ollama.ai/library/two/b", b"GGUF b")
    with pytest.raises(ModelError, match="one tag, or the tag latest, got .* with a, b; name one"):
        named.resolve(models / "manifests/registry.ollama.ai/library/two")
    with pytest.raises(ModelError, match="got a folder"):
        named.resolve(models / "manifests/registry.ollama.ai/library")


@pytest.mark.parametrize(
    "name, message",
    [
        ("llama3.3", "run `ollama pull llama3.3`, or use one of: hf.co/bartowski/Llama-3.2-GGUF:Q4_K_M, llama3.2:3b, "),
        ("llama3.2:1b", "expected a model that Ollama has pulled"),
        ("", "expected ollama:NAME or ollama:NAME:TAG"),
        ("a/b/c/d", "expected ollama:NAME"),
        ("../../x", "expected ollama:NAME"),
        ("..:x", "expected ollama:NAME"),
        ("x:..", "expected ollama:NAME"),
    ],
)
def test_names_of_nothing(models, name, message):
    with pytest.raises(ModelError) as caught:
        named.resolve(f"ollama:{name}")
    assert message in str(caught.value)


def test_no_folder_of_ollamas(tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ollama, "_SERVICE", tmp_path / "service")
    with pytest.raises(ModelError, match="set OLLAMA_MODELS to their folder"):
        named.resolve("ollama:llama3.2")
    put(tmp_path / "service", f"{LLAMA}/latest", b"GGUF of the service")
    assert named.resolve("ollama:llama3.2").read_bytes() == b"GGUF of the service"
    put(tmp_path / ".ollama/models", f"{LLAMA}/latest", b"GGUF of the user")
    assert named.resolve("ollama:llama3.2").read_bytes() == b"GGUF of the user"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": 1}', '{"layers": [1]}', "[" * 100_000, "\x00"])
def test_files_that_are_no_manifest(models, content):
    path = models / "manifests" / LLAMA / "3b"
    path.write_text(content)
    for name in ("ollama:llama3.2:3b", path):
        with pytest.raises(ModelError, match="expected a manifest of Ollama"):
            named.resolve(name)


def test_manifests_of_other_things(models):
    cases = {
        ("template",): "one GGUF file of weights, got 0",
        ("model", "model"): "one GGUF file of weights, got 2",
        ("model", "adapter"): "without a LoRA adapter",
    }
    for kinds, message in cases.items():
        put(models, f"{LLAMA}/other", b"GGUF other", *kinds)
        with pytest.raises(ModelError, match=message):
            named.resolve("ollama:llama3.2:other")
    manifest = put(models, f"{LLAMA}/other", b"safetensors")
    with pytest.raises(ModelError, match="got one that starts with b'safe'"):
        named.resolve(manifest)
    manifest.write_text(manifest.read_text().replace("sha256:", "sha256:../"))
    with pytest.raises(ModelError, match="expected a digest sha256"):
        named.resolve(manifest)


def test_blobs_that_are_not_whole(models):
    put(models, f"{LLAMA}/half", b"GGUF half", size=10_000)
    with pytest.raises(ModelError, match=r"expected a blob of 10000 bytes, .*got one of 9 bytes; pull the model again"):
        named.resolve("ollama:llama3.2:half")
    named.resolve("ollama:llama3.2:3b").unlink()
    with pytest.raises(ModelError, match="got no such file"):
        named.resolve("ollama:llama3.2:3b")


def test_a_gguf_file_below_manifests(models):
    path = models / "manifests" / "mine.gguf"
    path.write_bytes(b"GGUF mine")
    assert named.resolve(path) == path


def test_answers(models, tiny_model):
    """Through the library and the command line."""
    manifest = put(models, "registry.ollama.ai/library/tiny/latest", tiny_model("llama").read_bytes())
    expected = None
    for model in (str(tiny_model("llama")), "ollama:tiny", str(manifest)):
        llm = Llama(model, n_ctx=256, asl_budget=0.5, verbose=False)
        answer = llm.create_completion("the cat and the dog " * 10, max_tokens=8, temperature=0)["choices"][0]["text"]
        llm.close()
        expected = expected or answer
        assert answer == expected
    done = subprocess.run(command("doctor", "-m", "ollama:tiny"), capture_output=True, text=True)
    assert "pruned: K/V of" in done.stdout, done.stdout + done.stderr


def test_what_cannot_be_read_is_a_model_error(models, monkeypatch):
    """Names too long for a file, something that is no file, folders that are closed, a home that nobody has."""
    pipe = models / "manifests" / "registry.ollama.ai" / "library" / "pipe" / "latest"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    for name in ("ollama:" + "a" * 300, "a" * 5000, str(pipe), f"{models}/manifests/{'a' * 300}"):
        with pytest.raises(ModelError, match="expected a GGUF file or a named model"):
            named.resolve(name)
    monkeypatch.setenv("OLLAMA_MODELS", "~nobody-of-this-name/models")
    with pytest.raises(ModelError, match="expected OLLAMA_MODELS to name a folder"):
        named.resolve("ollama:llama3.2")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_of_the_service_that_is_closed(models, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(models))
    models.chmod(0)
    try:
        with pytest.raises(ModelError, match="Permission denied; check"):
            named.resolve("ollama:llama3.2")
        monkeypatch.delenv("OLLAMA_MODELS")
        monkeypatch.setenv("HOME", str(models / "nobody"))
        monkeypatch.setattr(ollama, "_SERVICE", models)
        with pytest.raises(ModelError, match="found none; set OLLAMA_MODELS"):
            named.resolve("ollama:llama3.2")
    finally:
        models.chmod(0o755)
