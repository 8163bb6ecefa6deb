"""Requests, clients that vanish, and hostile ones, for long: memory must not grow, no slot may stay at work or keep a cell.

    .venv/bin/python bench/server/soak.py --requests 500 --disconnects 1000

Prints what each part found. Exit code 1 if memory grew by more than a tenth over the second half of the requests or of the clients that
leave, if a slot is at work, keeps cells once it is erased or answers differently from before, if an `asl` object made a server error,
or if a signal under load did not end the server. What is no JSON at all is llama-server's to answer: with 500.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.models.named import resolve
from cut_gguf import cut
from patience import PATIENCE
from serving import Server, serving

WORDS = "the sky was clear and a ship left port with wine salt iron wool for towns along the coast until the storm came".split()
SLOTS = 3
THREADS = 5
ARGUMENTS = f"--asl-budget 0.2 -np {SLOTS} -c {SLOTS * 1024} -t 1 --asl-room 256 --cache-ram 64 --metrics".split()
CLIENT = """
import http.client, json, sys
port, bodies = int(sys.argv[1]), json.loads(sys.stdin.read())
open_ones = []
for body in bodies:
    one = http.client.HTTPConnection("127.0.0.1", port)
    one.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    open_ones.append(one)
print("sent", flush=True)
for one in open_ones:
    one.getresponse().read()
"""
"""a process that asks several things at once"""

VALUES: list[Any] = [
    None, True, -1, 0, 1, 7.5, -0.5, 1e300, 2**63, "", "auto", "auto:0.9-0.1", "fit:1GiB", "none", "\x00", "\uffff", "x" * 10_000,
    [], [[]], {}, {"budget": {}}, ["system", 3], ["system"], "snapkv", "pyramidinfer", "asl-span:window=-3", "asl-span:tau=nan",
    "gemfilter", "full", 0.3, 1.0, 512,
]  # fmt: skip
NAMES = ("budget", "policy", "protect", "guard", "buget", "", "full_kv", "__class__")
RAW = [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b'{"prompt"', b'{"prompt": "a", "prompt": 3}', b'{"prompt": [1, "a", null, {}]}',
    b'{"prompt": [999999999]}', b'{"prompt": [-1]}', b'{"prompt": []}', b'{"prompt": ""}', b'{"asl": {}}', b'{"prompt": "a", "asl": ',
    b"\xff\xfe{}", b"[" * 50_000, b'{"prompt": "a", "asl": ' + b'{"budget": ' * 5_000, b'{"prompt": "\\ud800", "n_predict": 1}',
    b'{"messages": 3}', b'{"messages": [{"role": "user"}]}', b'{"prompt": "a", "n_predict": 1e99}', b'{"prompt": "a", "id_slot": 99}',
]  # fmt: skip
PATHS = ("/completion", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=n_words))


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def make_body(rng: random.Random, n_predict: int = 20) -> dict[str, Any]:
    return {"prompt": text(rng, rng.randrange(5, 400)), "n_predict": n_predict, "stream": rng.random() < 0.5}


def in_threads(n: int, work: Callable[[random.Random], None], seed: int = 0) -> None:
    """n times, some at once."""

    def part(i: int) -> None:
        rng = random.Random(seed * THREADS + i)
        for _ in range(n // THREADS):
            work(rng)

    threads = [threading.Thread(target=part, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def send_requests(server: Server, n_requests: int, words: tuple[int, int]) -> bool:
    """Whether memory stays as it is."""
    rng, found = random.Random(3), []
    for i in range(n_requests):
        server.complete(text(rng, rng.randrange(*words)), 4)
        if i % max(1, n_requests // 10) == 0 or i == n_requests - 1:
            found.append(resident_mib(server))
            print(f"after {i + 1} requests: {found[-1]:.1f} MiB", flush=True)
    return steady(found)


def steady(found: list[float]) -> bool:
    """Memory after equal parts of the work."""
    return len(found) < 2 or found[-1] <= 1.1 * found[len(found) // 2]


def leave(server: Server, rng: random.Random, seconds: float) -> None:
    """A client that asks and is gone, whatever has come by then."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", "/completion", json.dumps(make_body(rng)), {"Content-Type": "application/json"})
    time.sleep(rng.uniform(0, seconds))
    connection.close()


def send_leaving(server: Server, n_clients: int, seconds: float) -> bool:
    """Whether memory stays as it is."""
    found = []
    for tenth in range(10):
        in_threads(n_clients // 10, lambda rng: leave(server, rng, seconds), tenth)
        server.wait_until_idle()
        found.append(resident_mib(server))
        print(f"after {(tenth + 1) * n_clients // 10} clients that left: {found[-1]:.1f} MiB", flush=True)
    return steady(found)


def kill(server: Server, rng: random.Random, seconds: float) -> None:
    """A process with some requests is killed."""
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(json.dumps([make_body(rng) for _ in range(rng.randrange(1, 4))]).encode())
    client.stdin.close()
    client.stdout.readline()
    time.sleep(rng.uniform(0, seconds))
    client.kill()
    client.wait()
    client.stdout.close()


def raw_status(server: Server, path: str, data: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status


def send_hostile(server: Server, n_requests: int) -> bool:
    """Whether no `asl` object made a server error, and the server is there."""
    rng, wrong = random.Random(11), []
    statuses = collections.Counter(raw_status(server, path, data) // 100 for path in PATHS for data in RAW)
    print("malformed: " + ", ".join(f"{n} of {kind}xx" for kind, n in sorted(statuses.items())), flush=True)
    statuses.clear()
    for _ in range(n_requests):
        options = {rng.choice(NAMES[:4] if rng.random() < 0.8 else NAMES): rng.choice(VALUES) for _ in range(2)}
        body = {"prompt": text(rng, rng.choice((3, 300))), "n_predict": 1, "asl": options}
        if rng.random() < 0.1:
            body["asl"] = rng.choice(VALUES)
        status = raw_status(server, "/completion", json.dumps(body).encode())
        statuses[status // 100] += 1
        if status >= 500:
            wrong.append((status, repr(body["asl"])[:200]))
    alive = server.get("/health")[0] == 200
    counts = ", ".join(f"{n} of {kind}xx" for kind, n in sorted(statuses.items()))
    print(f"hostile: {counts}; server errors: {wrong[:5]}; alive: {alive}", flush=True)
    return alive and not wrong


def is_clean(server: Server, question: dict[str, Any], before: str) -> bool:
    """Whether all slots come to rest, answer as before, and give all their cells back."""
    server.wait_until_idle()
    after = [server.complete(**question, id_slot=slot)["content"] for slot in range(SLOTS)]
    for slot in range(SLOTS):
        server.post(f"/slots/{slot}?action=erase", {})
    left = [slot["asl"]["n_cells_used"] for slot in server.slots()]
    same = all(answer == before for answer in after)
    print(
        f"{resident_mib(server):.1f} MiB, all slots idle, same answers: {same}, cells after erasing: {left}", flush=True
    )
    return same and not any(left)


def end_under_load(server: Server, clients_stay: bool) -> bool:
    """SIGTERM while prompts run, answers stream and others wait. Clients that stay cost a second signal."""
    rng = random.Random(23)
    streams = [server.stream("/completion", make_body(rng, 200)) for _ in range(2 * SLOTS)]
    while not all(slot["is_processing"] for slot in server.slots()):
        time.sleep(0.01)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    if clients_stay:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(5)
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
    else:
        for stream in streams:
            stream.close()
    code = server.process.wait(PATIENCE)
    for stream in streams:
        stream.close()
    print(
        f"SIGTERM under load, clients {'stay' if clients_stay else 'leave'}: exit code {code} after "
        f"{time.monotonic() - began:.1f} s",
        flush=True,
    )
    return code == 0 or (clients_stay and code == 1)  # as llama-server's second signal


def soak(args: argparse.Namespace, model: Path) -> bool:
    with serving(model, *ARGUMENTS, "--slot-save-path", tempfile.gettempdir(), *args.more) as server:
        question = {"prompt": text(random.Random(9), 300), "n_predict": 8, "cache_prompt": False}
        before = server.complete(**question)["content"]
        good = send_requests(server, args.requests, tuple(args.words))
        good &= send_leaving(server, args.disconnects, args.seconds)
        good &= is_clean(server, question, before)
        print(f"{args.kills} processes of clients are killed", flush=True)
        in_threads(args.kills, lambda rng: kill(server, rng, args.seconds))
        good &= is_clean(server, question, before)
        good &= send_hostile(server, args.hostile)
        good &= is_clean(server, question, before)
        good &= end_under_load(server, clients_stay=False)
    with serving(model, *ARGUMENTS, *args.more) as server:
        return good & end_under_load(server, clients_stay=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--layers", type=int, help="the model's first ones alone: many more requests in the same time")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hostile", type=int, default=300)
    parser.add_argument("--words", type=int, nargs=2, default=(5, 350), help="fewest and most of a prompt")
    parser.add_argument("--seconds", type=float, default=0.5, help="longest stay of a client that leaves")
    parser.add_argument(
        "--more", nargs="*", default=[], help="more options of the server: write --more=--asl-budget=auto"
    )
    args = parser.parse_args()
    model = resolve(args.model)
    with tempfile.TemporaryDirectory() as folder:
        if args.layers is not None:
            whole, model = model, Path(folder) / "cut.gguf"
            cut(whole, model, args.layers)
        return int(not soak(args, model))


if __name__ == "__main__":
    sys.exit(main())
