"""Layers in another process, behind llama.cpp's own RPC server: answers are those of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patience import PATIENCE
from serving import free_port, serving

ROOT = Path(__file__).parents[3]
PROGRAM = next(ROOT.glob("build/py3-none-*/bin/ggml-rpc-server"), None)
ARGUMENTS = "--asl-budget 0.2 --asl-dequant off -np 2 -c 4096 -t 1 -fa off --asl-room 256 --cache-ram 0 -lv 4".split()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if PROGRAM is None:
        pytest.skip("llama.cpp's RPC server is not built (make test-server does)")
    port = free_port()
    process = subprocess.Popen([str(PROGRAM), "-H", "127.0.0.1", "-p", str(port), "-t", "1"], env=dict(os.environ))
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < end, "the RPC server does not answer"
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_answers_are_those_of_one_process(smollm2, address, document):
    answers = []
    for more in ([], ["--rpc", address, "-ngl", "99"], ["--rpc", address, "-ngl", "12"]):
        with serving(smollm2, *ARGUMENTS, *more) as server:
            found = [server.complete(document, 16, cache_prompt=False, n_probs=1)]
            found.append(server.complete([*document, 198, 198, 2683, 19617], 16, n_probs=1))  # a turn over what is kept
            assert found[0]["asl"]["pruned"]
            keys = ("content", "completion_probabilities")
            answers.append([[answer[key] for key in keys] for answer in found])
            answers[-1].append([answer["asl"]["kept_tokens"] for answer in found])
            assert ("RPC0" in server.output()) == bool(more)  # where its buffers are
    assert answers[1] == answers[0] and answers[2] == answers[0]
