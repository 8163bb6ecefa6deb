"""asl-gguf serve as a Ray Serve deployment: replicas on the machines of a Ray cluster, each with a server of its own.

    pip install 'ray[serve]'
    ASL_SERVE="-m model.gguf --asl-budget 0.2 -np 4 -c 65536" serve run ray_serve:app

Ray's proxy listens on port 8000. A request with the header `serve_multiplexed_model_id: NAME` goes to the replica that has seen this
name before, so a conversation stays with the slot that has pruned it. Answers, streams too, pass through as the server sends them.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

SESSIONS = 1024
"""names that a replica remembers"""
OWN = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
"""headers of one connection"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@serve.deployment(num_replicas=2, max_ongoing_requests=64, health_check_period_s=10)
class Endpoint:
    """One server, as a process beside its replica."""

    async def __init__(self, arguments: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "asl_gguf", "serve", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(command + shlex.split(arguments))
        # a prompt may wait for a slot, and a client that leaves must close the connection to the server
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False)
        while not await self.is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"asl-gguf serve ended with exit code {self.process.returncode}")
            await asyncio.sleep(0.2)

    async def is_ready(self) -> bool:
        try:
            async with self.http.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    @serve.multiplexed(max_num_models_per_replica=SESSIONS)
    async def session(self, name: str) -> str:
        """Ray sends this name here from now on."""
        return name

    async def __call__(self, request: Request) -> StreamingResponse:
        if name := serve.get_multiplexed_model_id():
            await self.session(name)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in OWN}
        answer = await self.http.request(request.method, self.url + path, data=await request.body(), headers=headers)

        async def parts() -> AsyncIterator[bytes]:
            async with answer:
                async for part in answer.content.iter_any():
                    yield part

        headers = {name: value for name, value in answer.headers.items() if name.lower() not in OWN}
        return StreamingResponse(parts(), status_code=answer.status, headers=headers)

    async def check_health(self) -> None:
        """Ray replaces a replica whose server has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"asl-gguf serve ended with exit code {self.process.returncode}")

    def __del__(self) -> None:
        if (process := getattr(self, "process", None)) is not None:
            process.terminate()


app = Endpoint.bind(os.environ.get("ASL_SERVE", "-m smollm2-135m-instruct"))
