"""`asl-gguf serve` as a process, and a client of it, for tests and bench/server."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from patience import PATIENCE

LONG = [{"role": "user", "content": "The sky is blue. " * 80 + "What colour is the sky? Answer in a sentence."}]
"""messages whose prompt is pruned"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Stream:
    """A running answer: its events, with the time at which each came."""

    def __init__(self, port: int, path: str, body: dict[str, Any]) -> None:
        self.began = time.perf_counter()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._connection.request(
            "POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"}
        )
        self._response: http.client.HTTPResponse | None = None

    def __iter__(self) -> Iterator[tuple[float, dict[str, Any]]]:
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        for line in self._response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield time.perf_counter(), json.loads(line[6:])

    def close(self) -> None:
        """The client goes away, whatever is still to come."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Client:
    """Of a server on a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _request(self, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content[:1] in (b"{", b"[") else content.decode()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        return self._request("GET", path, None)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self._request("POST", path, body, headers)

    def complete(self, prompt: str | Sequence[int], n_predict: int = 8, **body: Any) -> dict[str, Any]:
        """A greedy answer to a plain prompt."""
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        status, answer = self.post("/completion", {"prompt": prompt, "n_predict": n_predict, "temperature": 0, **body})
        assert status == 200, answer
        return answer

    def stream(self, path: str, body: dict[str, Any]) -> Stream:
        return Stream(self.port, path, body)

    def slots(self) -> list[dict[str, Any]]:
        return self.get("/slots")[1]

    def wait_until_busy(self, slot: int = 0) -> None:
        """Until a slot has something to do."""
        end = time.monotonic() + PATIENCE
        while not self.slots()[slot]["is_processing"]:
            assert time.monotonic() < end, "the slot has nothing to do"
            time.sleep(0.02)

    def wait_until_idle(self) -> None:
        end = time.monotonic() + PATIENCE
        while any(slot["is_processing"] for slot in self.slots()):
            assert time.monotonic() < end, "a slot is still at work"
            time.sleep(0.02)


class Server(Client):
    """A process on a port of its own.

    Args:
        model: None: a router of those that the arguments name.
        program: what Python runs as `asl-gguf`.
    """

    def __init__(
        self,
        model: Path | None,
        *arguments: str,
        env: dict[str, str] | None = None,
        program: Sequence[str] = ("-m", "asl_gguf"),
    ) -> None:
        super().__init__(free_port())
        self.log = tempfile.TemporaryFile()
        command = [sys.executable, *program, "serve", *(["-m", str(model)] if model else [])]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--no-warmup", "--fit", "off", *arguments]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env={**os.environ, **(env or {})})

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the server did not come up:\n{self.output()}")

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def serving(model: Path | None, *arguments: str, **options: Any) -> Iterator[Server]:
    """`Server`, until it is left."""
    server = Server(model, *arguments, **options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.log.close()


def gaps(times: Sequence[float], begin: float, end: float) -> list[float]:
    """Seconds between two tokens of a stream that came while something else ran, in ascending order."""
    return sorted(b - a for a, b in itertools.pairwise(times) if b > begin and a < end)
