"""Requests and clients that vanish, for long: memory must not grow, and no slot may stay at work.

    .venv/bin/python bench/server/soak.py --requests 500 --disconnects 1000

Prints resident memory after every tenth of the requests, then what /slots says after the disconnects. Exit code 1 if memory grew by
more than a tenth over the second half of the requests, or if a slot is at work, or answers differently from before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.models.named import resolve
from serving import Server, serving

WORDS = "the sky was clear and a ship left port with wine salt iron wool for towns along the coast until the storm came".split()
SLOTS = 3


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=n_words))


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def leave(server: Server, rng: random.Random, seconds: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"prompt": text(rng, rng.randrange(5, 400)), "n_predict": 20, "stream": rng.random() < 0.5}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(rng.uniform(0, seconds))
    connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--words", type=int, nargs=2, default=(5, 350), help="fewest and most of a prompt")
    parser.add_argument("--seconds", type=float, default=0.5, help="longest stay of a client that leaves")
    args = parser.parse_args()
    rng, failed = random.Random(3), False
    arguments = f"--asl-budget 0.2 -np {SLOTS} -c {SLOTS * 1024} -t 1 --asl-room 256 --cache-ram 64".split()
    with serving(resolve(args.model), *arguments) as server:
        question = {"prompt": text(random.Random(9), 300), "n_predict": 8, "cache_prompt": False}
        before, found = server.complete(**question)["content"], []
        for i in range(args.requests):
            server.complete(text(rng, rng.randrange(*args.words)), 4)
            if i % max(1, args.requests // 10) == 0 or i == args.requests - 1:
                found.append(resident_mib(server))
                print(f"after {i + 1} requests: {found[-1]:.1f} MiB", flush=True)
        failed |= found[-1] > 1.1 * found[len(found) // 2]

        def clients(n_clients: int, seed: int) -> None:
            own = random.Random(seed)
            for _ in range(n_clients):
                leave(server, own, args.seconds)

        threads = [threading.Thread(target=clients, args=(args.disconnects // 5, seed)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.wait_until_idle(120)
        after = [server.complete(**question, id_slot=slot)["content"] for slot in range(SLOTS)]
        failed |= any(answer != before for answer in after)
        print(
            f"after {args.disconnects} disconnects: {resident_mib(server):.1f} MiB, all slots idle, same answers: {not failed}"
        )
        failed |= server.stop() != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
