"""First token and longest gap of llama.cpp's server, as it is and with pruned prompts, from one build.

    .venv/bin/python bench/server/run.py --tokens 2048 4096 --clients 1 4 --runs 3

"stock, as few cells" gets the first part of each prompt alone, as many tokens as the budget keeps: how fast streams decode over them.
Clients send prompts at once: seconds to the first token (median of clients), CPU seconds of the server until all have one, and
tokens per second of all clients while all decode, by the clock and per CPU second of the server. Then one client streams a long answer while another sends a prompt: gaps are
those of the first client's tokens while that prompt runs, by the clock and in CPU time of the thread that runs the slots (what the
gap would be if nothing else ran on the machine).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.eval.demo_text import make_document
from asl_gguf.models.named import resolve
from asl_gguf.native.vocabulary import load_model, tokenize
from serving import Server, gaps, serving

ROOM = 1024
N_PREDICT = 64
N_PREDICT_OF_MANY = 256  # prompts that are selected at different layers do not end together


def cpu_seconds(server: Server) -> float:
    """User and system time of the server's process so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@dataclass
class Run:
    """One prompt of each client at once."""

    first: list[float]
    """seconds to each first token"""
    cpu: float
    """seconds of the server up to the last first token"""
    rate: float
    """tokens per second of all clients together, once all decode"""
    rate_cpu: float
    """the same per CPU second of the server"""


def ask(server: Server, prompts: list[list[int]]) -> Run:
    """All prompts at once."""
    times: list[list[float]] = [[] for _ in prompts]
    busy: list[list[float]] = [[] for _ in prompts]
    began, cpu = time.perf_counter(), cpu_seconds(server)

    def listen(i: int) -> None:
        n_predict = N_PREDICT if len(prompts) == 1 else N_PREDICT_OF_MANY
        body = {"prompt": prompts[i], "n_predict": n_predict, "temperature": 0, "ignore_eos": True, "id_slot": i}
        for when, event in server.stream("/completion", {**body, "cache_prompt": False}):
            if event["content"] or event["tokens"]:
                times[i].append(when)
                busy[i].append(cpu_seconds(server))

    threads = [threading.Thread(target=listen, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin, end = max(found[0] for found in times), min(found[-1] for found in times)
    n_tokens = sum(sum(begin < when <= end for when in found) for found in times)
    cpu_begin, cpu_end = max(found[0] for found in busy), min(found[-1] for found in busy)
    return Run(
        [found[0] - began for found in times],
        cpu_begin - cpu,
        n_tokens / (end - begin) if end > begin else 0,
        n_tokens / (cpu_end - cpu_begin) if cpu_end > cpu_begin else 0,
    )


def longest_slice_ms(server: Server) -> str:
    """CPU time of the thread that runs the slots, since the start: the longest that a prompt let others wait."""
    found = re.search(r"^asl:longest_slice_cpu_seconds (\S+)", server.get("/metrics")[1], re.MULTILINE)
    return f"{float(found[1]) * 1000:.0f}" if found else "-"


def slots_cpu_seconds(server: Server) -> float:
    """Of the thread that runs the slots, the process's first."""
    return int(Path(f"/proc/{server.process.pid}/schedstat").read_text().split()[0]) / 1e9


def gaps_meanwhile(server: Server, tokens: list[int]) -> tuple[list[float], float]:
    """Of another client's stream while a prompt runs: in ascending order by the clock, and the longest in CPU time."""
    times: list[float] = []
    busy: list[float] = []
    body = {"prompt": "Once upon a time", "n_predict": 4000, "temperature": 0, "ignore_eos": True, "id_slot": 1}
    stream = server.stream("/completion", body)

    def listen() -> None:
        try:
            for when, event in stream:
                if event["content"]:
                    times.append(when)
                    busy.append(slots_cpu_seconds(server))
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
    inside = [j for j in range(1, len(times)) if times[j] > begin and times[j - 1] < end]
    return gaps(times, begin, end), max(busy[j] - busy[j - 1] for j in inside)


def modes(budget: str) -> dict[str, tuple[list[str], float]]:
    """Options, and how much of each prompt is sent."""
    return {
        "stock": (["--asl-budget", "none"], 1.0),
        "stock, as few cells": (["--asl-budget", "none"], float(budget)),
        "stock -b 128 -ub 128": (["--asl-budget", "none", "-b", "128", "-ub", "128"], 1.0),
        "ours, budget 1.0": (["--asl-budget", "1.0"], 1.0),
        f"ours, budget {budget}": (["--asl-budget", budget], 1.0),
        f"ours, budget {budget}, -fa off": (["--asl-budget", budget, "-fa", "off"], 1.0),
    }


def gap_cells(found: list[tuple[list[float], float]]) -> list[str]:
    """Medians of runs: tokens, their median and longest gap, the longest in CPU time."""
    picks: list[Callable[[tuple[list[float], float]], float]] = [
        lambda run: len(run[0]),
        lambda run: statistics.median(run[0]) * 1000,
        lambda run: run[0][-1] * 1000,
        lambda run: run[1] * 1000,
    ]
    return [f"{statistics.median(map(pick, found)):.0f}" for pick in picks]


def table(args: argparse.Namespace, path: Path, document: Callable[[int], list[int]]) -> None:
    """Prints its lines as they come."""
    n_ctx, n_slots = max(args.tokens) + ROOM, max(2, *args.clients)
    common = f"-np {n_slots} -t {args.threads} -c {n_slots * n_ctx} --asl-room {ROOM} --cache-ram 0 --metrics".split()
    print(
        "| server | tokens | clients | first token, s | CPU s of all | tokens/s of all | a CPU s | others' tokens meanwhile | median gap, ms | "
        "longest gap, ms | in CPU ms | longest slice, CPU ms | peak RSS, MiB |"
    )
    print("|" + "---|" * 13)
    for n_tokens in args.tokens:
        for name, (options, share) in modes(args.budget).items():
            if args.modes and name not in args.modes:
                continue
            tokens = document(n_tokens)[: int(share * n_tokens)]
            prompts = [[*tokens[i + 1 :], *tokens[: i + 1]] for i in range(n_slots)]
            with serving(path, *common, *options) as server:
                for n_clients in args.clients:
                    runs = [ask(server, prompts[:n_clients]) for _ in range(args.runs)]
                    cells = [
                        f"{statistics.median(first for run in runs for first in run.first):.2f}",
                        f"{statistics.median(run.cpu for run in runs):.2f}",
                        f"{statistics.median(run.rate for run in runs):.1f}",
                        f"{statistics.median(run.rate_cpu for run in runs):.1f}",
                    ]
                    found = [gaps_meanwhile(server, tokens) for _ in range(args.runs if n_clients == 1 else 0)]
                    cells += gap_cells(found) if found else ["-"] * 4
                    cells.append(longest_slice_ms(server))
                    cells.append(f"{resident_mib(server):.0f}")
                    print(f"| {name} | {n_tokens} | {n_clients} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", default="0.2", help="a share")
    parser.add_argument("--modes", nargs="+", help="some of the rows (default: all)", metavar="ROW")
    args = parser.parse_args()
    path = resolve(args.model)
    vocabulary = load_model(str(path), vocab_only=True)

    def document(n_tokens: int) -> list[int]:
        made = make_document(lambda text: len(tokenize(vocabulary, text)), n_tokens)
        return tokenize(vocabulary, made.text)[:n_tokens]

    table(args, path, document)


if __name__ == "__main__":
    main()
