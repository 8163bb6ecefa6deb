"""`-hf` with the real huggingface_hub, against a server on this machine that answers as Hugging Face does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chats import command, environment
from patience import PATIENCE

REPO = "user/tiny-GGUF"
FILES = ("tiny-Q4_K_M.gguf", "tiny-F16.gguf")


@pytest.fixture
def endpoint(tiny_model) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the files that were fetched from it."""
    data = Path(tiny_model("llama")).read_bytes()
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            self.digest = hashlib.sha256(
                name.encode() + data
            ).hexdigest()  # one for each name: files of one digest are one
            if path.startswith(f"/api/models/{REPO}"):
                entries = [{"type": "file", "oid": self.digest[:40], "size": len(data), "path": one} for one in FILES]
                info = {"id": REPO, "sha": "c" * 40, "siblings": [{"rfilename": one} for one in FILES]}
                self.reply(json.dumps(entries if "/tree/" in path else info).encode(), "application/json")
            elif path.startswith(f"/{REPO}/resolve/") and name in FILES:
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
    for name in (f"{REPO}:f16", f"{REPO}:f16", REPO):
        arguments = command("run", "-hf", name, "-p", "Say something.", "-n", 3, "-t", 1, "--json")
        done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["completion_tokens"] == 3
    assert fetched == ["tiny-F16.gguf", "tiny-Q4_K_M.gguf"] and os.listdir(tmp_path)
