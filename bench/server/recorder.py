"""A proxy that notes what clients ask an endpoint and what comes back."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

_HOP = ("connection", "content-length", "keep-alive", "transfer-encoding")
"""headers of one connection"""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes a request on, and its answer back as it comes."""

    protocol_version = "HTTP/1.1"
    target: int
    seen: list[dict[str, Any]]

    def log_message(self, *_args: Any) -> None:
        """Nothing: `seen` has it."""

    def pass_on(self) -> None:
        """One request."""
        began = time.monotonic()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        above = http.client.HTTPConnection("127.0.0.1", self.target)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "accept-encoding")}
        with contextlib.closing(above):
            above.request(self.command, self.path, data, headers)
            answer = above.getresponse()
            content, left = self._answer(answer)
        note = {"path": f"{self.command} {self.path}", "status": answer.status, "left": left, **_asked(data)}
        self.seen.append(note | {"seconds": time.monotonic() - began, "asl": last_report(content), "answer": content})

    def _answer(self, answer: http.client.HTTPResponse) -> tuple[bytes, bool]:
        """What came, and whether the client left before the end."""
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _HOP:
                self.send_header(key, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        content = b""
        try:
            while part := answer.read1(1 << 16):
                content += part
                self.wfile.write(part)
                self.wfile.flush()
        except OSError:
            return content, True
        return content, False

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = pass_on


def _asked(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    return {"stream": bool(body.get("stream")), "tools": len(body.get("tools") or ())}


def last_report(content: bytes) -> dict[str, Any] | None:
    """The last `asl` object in an answer of any form; None: it has none."""
    text = content.decode("utf-8", "replace")
    at = text.rfind('"asl":')
    return json.JSONDecoder().raw_decode(text[at + 6 :].lstrip())[0] if at >= 0 else None


@contextlib.contextmanager
def recording(target: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A port of this machine that leads to another one, and what goes through it."""
    seen: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"target": target, "seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield proxy.server_address[1], seen
        proxy.shutdown()
        thread.join()
