"""Two servers behind nginx as docs/SERVER.md has it: a session stays with its server, streams come token by token."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cut_gguf import cut
from patience import PATIENCE
from serving import Client, Server, free_port, serving

PAGE = Path(__file__).parents[3] / "docs" / "SERVER.md"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
ARGUMENTS = "--asl-budget 0.2 -np 2 -c 4096 -t 1 --asl-room 256 --cache-ram 0".split()
N_SESSIONS = 6


@pytest.fixture(scope="module")
def replicas(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    if NGINX is None:
        pytest.skip("there is no nginx (apt-get install nginx)")
    model = tmp_path_factory.mktemp("replicas") / "cut.gguf"
    cut(smollm2, model, 8)
    with serving(model, *ARGUMENTS) as first, serving(model, *ARGUMENTS) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def balancer(replicas: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    found = re.search(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, "docs/SERVER.md has no configuration of nginx"
    port, folder = free_port(), tmp_path_factory.mktemp("nginx")
    text = found[1].replace("listen 8080;", f"listen 127.0.0.1:{port};")
    for number, replica in zip((8081, 8082), replicas, strict=True):
        assert f"127.0.0.1:{number}" in text
        text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{replica.port}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(f"pid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n", encoding="utf-8")
    command = [str(NGINX), "-e", str(folder / "errors"), "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
    process = subprocess.Popen(command)
    try:
        client, end = Client(port), time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder / "errors").read_text()
            with contextlib.suppress(OSError):
                if client.get("/health")[0] == 200:
                    break
            time.sleep(0.05)
        yield client
    finally:
        process.terminate()
        process.wait()


def ask(client: Client, prompt: list[int], session: str) -> dict:
    body = {"prompt": prompt, "n_predict": 4, "temperature": 0, "return_tokens": True}
    status, answer = client.post("/completion", body, {"X-Session": session})
    assert status == 200, answer
    return answer


def n_prompts(server: Server) -> int:
    return sum("report" in slot["asl"] for slot in server.slots())


def test_a_session_stays_with_its_server(balancer, replicas, document):
    """Others come in between, so that a turn which found the other server would begin anew."""
    for i in range(N_SESSIONS):
        prompt = [*document[i + 1 :], *document[: i + 1]]
        first = ask(balancer, prompt, f"session {i}")
        assert first["asl"]["pruned"]
        again = ask(balancer, [*prompt, *first["tokens"], *document[:8]], f"session {i}")
        assert again["asl"]["cached_tokens"] >= len(prompt)
    sessions = (f"another {i}" for i in range(64))  # where names go depends on the ports
    while not all(n_prompts(replica) for replica in replicas):
        ask(balancer, document[:20], next(sessions))


def test_streams_come_token_by_token(balancer, document):
    body = {"prompt": document, "n_predict": 40, "temperature": 0, "ignore_eos": True}
    times = [when for when, event in balancer.stream("/completion", body) if event["content"]]
    assert len(set(times)) > 10 and times[-1] - times[0] > 0.02


def test_the_other_server_takes_over(balancer, replicas, document):
    replicas[0].stop()
    for i in range(N_SESSIONS):
        assert ask(balancer, document[: 40 + i], f"session {i}")["tokens_evaluated"] == 40 + i
