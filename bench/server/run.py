"""First token and longest gap of llama.cpp's server, as it is and with pruned prompts, from one build.

    .venv/bin/python bench/server/run.py --tokens 2048 4096 --runs 3

Each run: one client streams a long answer, then another sends a prompt. Gaps are those of the first client's tokens while
that prompt runs. CPU seconds are the server's, from the request to the prompt's first token, with nobody else there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.eval.demo_text import make_document
from asl_gguf.models.named import resolve
from asl_gguf.native.vocabulary import load_model, tokenize
from serving import Server, gaps, serving

ROOM = 1024


def cpu_seconds(server: Server) -> float:
    """User and system time of the server's process so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def first_token(server: Server, tokens: list[int]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds(server)
    server.complete(tokens, 1, cache_prompt=False, id_slot=0)
    return time.perf_counter() - wall, cpu_seconds(server) - cpu


def gaps_meanwhile(server: Server, tokens: list[int]) -> list[float]:
    """Of another client's stream while a prompt runs, in ascending order."""
    times: list[float] = []
    body = {"prompt": "Once upon a time", "n_predict": 4000, "temperature": 0, "ignore_eos": True, "id_slot": 1}
    stream = server.stream("/completion", body)

    def listen() -> None:
        try:
            times.extend(when for when, event in stream if event["content"])
        except (OSError, ValueError, AttributeError):
            pass  # closed below

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(1)
    begin = time.perf_counter()
    server.complete(tokens, 1, cache_prompt=False, id_slot=0)
    end = time.perf_counter()
    time.sleep(0.3)
    stream.close()
    listener.join()
    server.wait_until_idle()
    return gaps(times, begin, end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--modes", nargs="+", help="some of the rows (default: all)")
    args = parser.parse_args()
    path = resolve(args.model)
    vocabulary = load_model(str(path), vocab_only=True)
    n_ctx = max(args.tokens) + ROOM
    common = f"-np 2 -t {args.threads} -c {2 * n_ctx} --asl-room {ROOM}".split()
    modes = {
        "stock": ["--asl-budget", "none"],
        "stock -b 128 -ub 128": ["--asl-budget", "none", "-b", "128", "-ub", "128"],
        "pruned": ["--asl-budget", args.budget],
        "pruned -ub 128": ["--asl-budget", args.budget, "-ub", "128"],
    }
    print(
        "| server | tokens | first token, s | CPU s | tokens of another stream meanwhile | median gap, ms | longest gap, ms | peak RSS, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for n_tokens in args.tokens:
        text = make_document(lambda text: len(tokenize(vocabulary, text)), n_tokens).text
        tokens = tokenize(vocabulary, text)[:n_tokens]
        for name, options in modes.items():
            if args.modes and name not in args.modes:
                continue
            with serving(path, *common, *options) as server:
                alone = [first_token(server, tokens) for _ in range(args.runs)]
                others = [gaps_meanwhile(server, tokens) for _ in range(args.runs)]
                row = [
                    f"{statistics.median(wall for wall, _ in alone):.2f}",
                    f"{statistics.median(cpu for _, cpu in alone):.2f}",
                    f"{statistics.median(map(len, others)):.0f}",
                    f"{statistics.median(statistics.median(found) for found in others) * 1000:.0f}",
                    f"{statistics.median(found[-1] for found in others) * 1000:.0f}",
                    f"{resident_mib(server):.0f}",
                ]
            print(f"| {name} | {len(tokens)} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
