"""Clients that vanish leave nothing behind: no slot at work, no cell taken, no other answer changed."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time

import pytest

from patience import PATIENCE
from serving import Server

N_CLIENTS = 100
BODY = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}


def ask(server: Server, tokens: list[int], stream: bool, slot: int = -1) -> http.client.HTTPConnection:
    """A client that asks, and may go whatever has come by then."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    body = {"prompt": tokens, "n_predict": 30, "stream": stream, "id_slot": slot, **BODY}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [pytest.param(True, marks=pytest.mark.compact), False])
def test_a_prefill_ends_while_another_client_streams(server, document, stream):
    others = server.stream("/completion", {"prompt": "Once", "n_predict": 400, "id_slot": 1, **BODY})
    came: list[float] = []
    listener = threading.Thread(target=lambda: came.extend(when for when, _ in others))
    listener.start()
    client = ask(server, [*document, *document], stream, slot=0)
    server.wait_until_busy(0)
    n_before = len(came)
    while len(came) < n_before + 3:  # between slices of the prompt
        time.sleep(0.01)
    client.close()
    while (slot := server.slots()[0])["is_processing"]:
        time.sleep(0.02)
    assert listener.is_alive()
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
            client = ask(server, document[:n_tokens], stream)
            time.sleep(seconds)
            client.close()

    threads = [threading.Thread(target=leave) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_until_idle()
    # a slot keeps what it holds for the next prompt, which may take all of it
    for slot in server.slots():
        assert 0 <= slot["asl"]["n_cells_used"] <= server.get("/props")[1]["asl"]["n_cells_slot"]
        after = server.complete(document, 8, id_slot=slot["id"], **BODY)
        assert after["content"] == before["content"]
        assert after["asl"]["kept_tokens"] == before["asl"]["kept_tokens"]
