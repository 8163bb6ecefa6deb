"""`-hf` with the real huggingface_hub, against a server on this machine that answers as Hugging Face does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chats import command, environment
from patience import PATIENCE
from split_gguf import split

REPO = "user/tiny-GGUF"


@pytest.fixture
def endpoint(tiny_model, tmp_path_factory) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the files that were fetched from it: two models in a file each, and one in parts."""
    source = Path(tiny_model("llama"))
    files = {name: source.read_bytes() for name in ("tiny-Q4_K_M.gguf", "tiny-F16.gguf")}
    parts = split(source, tmp_path_factory.mktemp("parts"), 25, name="tiny-Q8_0")
    files |= {part.name: part.read_bytes() for part in parts}
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            data = files.get(name, b"")
            self.digest = hashlib.sha256(
                name.encode() + data
            ).hexdigest()  # one for each name: files of one digest are one
            if path.startswith(f"/api/models/{REPO}"):
                entries = [
                    {"type": "file", "oid": self.digest[:40], "size": len(files[one]), "path": one} for one in files
                ]
                info = {"id": REPO, "sha": "c" * 40, "siblings": [{"rfilename": one} for one in files]}
                self.reply(json.dumps(entries if "/tree/" in path else info).encode(), "application/json")
            elif path.startswith(f"/{REPO}/resolve/") and name in files:
                fetched.extend([name] if self.command == "GET" else [])
                self.reply(data, "application/octet-stream")
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def reply(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            for header, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("ETag", f'"{self.digest}"'),
            ):
                self.send_header(header, value)
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_once(endpoint, tmp_path):
    pytest.importorskip("huggingface_hub", reason="not installed; to run this test: pip install huggingface_hub")
    address, fetched = endpoint
    variables = environment() | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    for name in (f"{REPO}:f16", f"{REPO}:f16", REPO, f"{REPO}:Q8_0"):
        arguments = command("run", "-hf", name, "-p", "Say something.", "-n", 3, "-t", 1, "--json")
        done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["completion_tokens"] == 3
    assert fetched[:2] == ["tiny-F16.gguf", "tiny-Q4_K_M.gguf"] and os.listdir(tmp_path)
    assert fetched[2:] == [f"tiny-Q8_0-0000{i}-of-0000{len(fetched) - 2}.gguf" for i in range(1, len(fetched) - 1)]


def test_from_pretrained(endpoint, tmp_path):
    """The parent's way to the same repository, with pruning options, and with the other parts of a split model."""
    pytest.importorskip("huggingface_hub", reason="not installed; to run this test: pip install huggingface_hub")
    address, _ = endpoint
    variables = environment() | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    program = f"""
from asl_gguf import Llama
options = dict(n_ctx=1024, n_threads=1, asl_budget=0.4, asl_min_prompt=80)
parts = sorted(name for name in {sorted(endpoint_files(address))!r} if "Q8_0" in name)
for file, more in (("*F16*", None), (parts[0], parts[1:])):
    llm = Llama.from_pretrained({REPO!r}, filename=file, additional_files=more, **options)
    llm.create_completion(list(range(5, 205)), max_tokens=2)
    assert llm.last_prefill.pruned
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def endpoint_files(address: str) -> list[str]:
    with urllib.request.urlopen(f"{address}/api/models/{REPO}") as reply:
        return [one["rfilename"] for one in json.load(reply)["siblings"]]
