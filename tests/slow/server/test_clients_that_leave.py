"""Clients that vanish leave nothing behind: no slot at work, no cell taken, no other answer changed."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time

import pytest

from serving import Server

N_CLIENTS = 100
BODY = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}


def leave_after(server: Server, seconds: float, tokens: list[int], stream: bool, slot: int = -1) -> None:
    """A client that asks and is gone, whatever has come by then."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"prompt": tokens, "n_predict": 30, "stream": stream, "id_slot": slot, **BODY}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(seconds)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_prefill_ends_while_another_client_streams(server, document, stream):
    others = server.stream("/completion", {"prompt": "Once", "n_predict": 400, "id_slot": 1, **BODY})
    listener = threading.Thread(target=lambda: sum(1 for _ in others))
    listener.start()
    long = [*document, *document]
    threading.Thread(target=leave_after, args=(server, 0.7, long, stream, 0)).start()
    while not server.slots()[0]["is_processing"]:
        time.sleep(0.02)
    while (slot := server.slots()[0])["is_processing"]:
        time.sleep(0.02)
    listener.join()
    assert slot["asl"]["n_cells_used"] == 0 and slot["asl"]["n_pruned"] == 0
    assert "report" not in slot["asl"]  # the prompt's end was never reached


def test_many_at_random_times(server, document):
    rng = random.Random(17)
    before = server.complete(document, 8, **BODY)
    jobs = [(rng.uniform(0.0, 0.8), rng.randrange(20, 400), rng.random() < 0.5) for _ in range(N_CLIENTS)]

    def leave() -> None:
        while jobs:
            seconds, n_tokens, stream = jobs.pop()
            leave_after(server, seconds, document[:n_tokens], stream)

    threads = [threading.Thread(target=leave) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_until_idle(120)
    # a slot keeps what it holds for the next prompt, which may take all of it
    for slot in server.slots():
        assert 0 <= slot["asl"]["n_cells_used"] <= server.get("/props")[1]["asl"]["n_cells_slot"]
        after = server.complete(document, 8, id_slot=slot["id"], **BODY)
        assert after["content"] == before["content"]
        assert after["asl"]["kept_tokens"] == before["asl"]["kept_tokens"]
