"""Whether requests leave memory behind: what malloc has handed out, after rounds of a request of each kind.

    .venv/bin/python bench/server/leaks.py --layers 4 --rounds 150

Prints MiB handed out by malloc (all arenas, C++ and Python), traced by Python alone, and resident. Resident memory grows for other
reasons as well: pages without a block that malloc keeps, caches that fill. Exit code 1 if a round leaves more than --most bytes.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.models.named import resolve
from cut_gguf import cut
from patience import PATIENCE
from serving import Server, free_port, serving
from watched_server import WATCH_PORT

PROGRAM = Path(__file__).parents[2] / "tests" / "watched_server.py"
ARGUMENTS = "--asl-budget 0.2 -np 2 -c 2048 -t 1 --asl-room 256 --cache-ram 64 --metrics".split()
SENTENCE = "The sky was clear and a ship left port with salt. "
LONG = "One. " + SENTENCE * 40
OTHER = "Two. " + SENTENCE * 40
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


def leave(server: Server, prompt: str, after: str) -> None:
    """A client that is gone in the middle of its prompt, or of its answer."""
    body = {"prompt": prompt, "n_predict": 200, "ignore_eos": True, "cache_prompt": False, "id_slot": 0}
    stream = server.stream("/completion", body)
    if after == "decode":
        next(iter(stream))
    else:
        server.wait_until_busy()
    stream.close()
    server.wait_until_idle()


def turn(server: Server) -> None:
    """A prompt, and one that goes on from it."""
    first = server.complete(LONG, 2, id_slot=0, return_tokens=True)
    server.complete(LONG + first["content"] + SENTENCE * 2, 2, id_slot=0)


def save_and_restore(server: Server) -> None:
    """Of a pruned prompt."""
    server.complete(LONG, 1, id_slot=0)
    for action in ("save", "erase", "restore", "erase"):
        status, answer = server.post(f"/slots/0?action={action}", {"filename": "leaks.bin"})
        assert status == 200, answer


def swap(server: Server) -> None:
    """Two conversations in one slot: each goes to the cache in host memory and comes back."""
    for prompt in (LONG, OTHER):
        server.complete(prompt, 1, id_slot=0)


def chat(server: Server, **more: Any) -> None:
    """Of a tool, a schema or plain."""
    body = {"messages": [{"role": "user", "content": "Look."}], "max_tokens": 3, "temperature": 0, **more}
    assert server.post("/v1/chat/completions", body)[0] == 200


def refuse(server: Server) -> None:
    """Wrong options, a prompt that is too long, and what is no JSON."""
    for body in ({"prompt": "a", "asl": {"budget": 7.5}}, {"prompt": LONG * 9}, {"prompt": 3}):
        assert server.post("/completion", body)[0] == 400


def look(server: Server) -> None:
    """What shows the server's state."""
    number = server.get("/asl/answers")[1]["answers"][0]["number"]
    for path in ("/slots", "/props", "/metrics", "/asl", f"/asl/answers?number={number}", "/v1/models"):
        assert server.get(path)[0] == 200


KINDS: dict[str, Callable[[Server], Any]] = {
    "short": lambda server: server.complete("Once upon a time", 4, cache_prompt=False),
    "pruned": lambda server: server.complete(LONG, 2, cache_prompt=False),
    "streamed": lambda server: list(server.stream("/completion", {"prompt": LONG, "n_predict": 4, "return_progress": True, "cache_prompt": False})),
    "children": lambda server: server.post("/v1/completions", {"prompt": LONG, "n": 2, "max_tokens": 2, "cache_prompt": False}),
    "cached prefix": turn,
    "host cache": swap,
    "slot files": save_and_restore,
    "left in prefill": lambda server: leave(server, LONG, "prefill"),
    "left in decode": lambda server: leave(server, "Once", "decode"),
    "tool call": lambda server: chat(server, tools=[TOOL], tool_choice="required"),
    "schema": lambda server: chat(server, response_format={"type": "json_object"}),
    "logprobs": lambda server: chat(server, logprobs=True, top_logprobs=3),
    "refused": refuse,
    "looked at": look,
}  # fmt: skip


Watch = Callable[[str], dict[str, int]]
"""what `tests/watched_server.py` says to look or trim"""


@contextmanager
def watched(model: Path, *more: str) -> Iterator[tuple[Server, Watch]]:
    """A server, and what it says of its memory."""
    port = free_port()

    def watch(word: str) -> dict[str, int]:
        server.complete(
            "Once", 1, cache_prompt=False, id_slot=0
        )  # what the slot's last prompt left goes with the next one
        time.sleep(0.1)  # threads of requests that have just been answered let go of them
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(word.encode())
            result: dict[str, int] = json.loads(connection.makefile().read())
        return result

    arguments = [*ARGUMENTS, "--slot-save-path", tempfile.gettempdir(), *more]
    program = (str(PROGRAM),)
    with serving(model, *arguments, env={WATCH_PORT: str(port)}, program=program) as server:
        yield server, watch


def growth(server: Server, watch: Watch, kinds: Sequence[str], n_rounds: int, say: Callable[[str], None]) -> float:
    """Bytes that a round leaves behind: from the least of the second third of the rounds to the least of the last one.

    The first third fills what is filled once. The least: threads that are not done yet hold something for a while.
    """
    found: list[int] = []
    for i in range(n_rounds):
        for kind in kinds:
            KINDS[kind](server)
        held = watch("look")
        found.append(held["in_use"])
        if i % max(1, n_rounds // 10) == 0 or i == n_rounds - 1:
            sizes = " | ".join(f"{held[name] / 2**20:.1f}" for name in ("in_use", "python", "resident"))
            say(f"| {(i + 1) * len(kinds)} | {sizes} |")
    third = n_rounds // 3
    return (min(found[-third:]) - min(found[-2 * third : -third])) / third


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--layers", type=int, help="the model's first ones alone: many more requests in the same time")
    parser.add_argument("--rounds", type=int, default=36, help="of a request of each kind; at least 3")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--each", action="store_true", help="rounds of one kind alone, then of the next")
    parser.add_argument("--most", type=int, default=4096, help="bytes that a round may leave")
    parser.add_argument(
        "--more", nargs="*", default=[], help="more options of the server: write --more=--asl-budget=auto"
    )
    args = parser.parse_args()
    model, good = resolve(args.model), True
    with tempfile.TemporaryDirectory() as folder:
        if args.layers is not None:
            whole, model = model, Path(folder) / "cut.gguf"
            cut(whole, model, args.layers)
        with watched(model, *args.more) as (server, watch):
            for kinds in [[kind] for kind in args.kinds] if args.each else [args.kinds]:
                print(f"{', '.join(kinds)}\n\n| requests | handed out, MiB | Python's | resident |\n|---|---|---|---|")
                left = growth(server, watch, kinds, args.rounds, lambda line: print(line, flush=True))
                trimmed = watch("trim")["resident"] / 2**20
                print(f"\na round left {left:.0f} bytes; resident without free pages: {trimmed:.1f} MiB\n", flush=True)
                good &= left <= args.most
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
