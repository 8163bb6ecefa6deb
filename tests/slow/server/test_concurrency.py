"""Many clients at once: each gets the answer that it would get alone.

To the last bit, where as many tokens run at once as alone. Tokens that others decode make no difference, nor do slices of a prompt.
Prompts that llama.cpp evaluates itself do, where they do not fit into the batch that is left beside answers (`asl_limit_batch`): with
fewer tokens at once, attention adds up in another order. Here they are shorter than that.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from serving import Server, serving

N_STREAMS, N_LONG = 8, 2
N_CTX, N_PREDICT = 1024, 100
BODY = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "n_probs": 2}
N_WHOLE = 8
"""tokens of a prompt that no batch cuts (`Pace.n_whole`)"""


@pytest.fixture(scope="module")
def many(smollm2: Path):
    texts = f"--asl-budget 0.2 --asl-dequant off --asl-room 256 -np {N_STREAMS + N_LONG} -t 1 -fa off --cache-ram 0"
    with serving(smollm2, *texts.split(), "-c", str((N_STREAMS + N_LONG) * N_CTX)) as server:
        yield server


class Asked:
    """A greedy answer: its tokens, and how far the second best one was from each."""

    def __init__(self, server: Server, prompt: Any, n_predict: int, slot: int) -> None:
        body = {"prompt": prompt, "n_predict": n_predict, "id_slot": slot, **BODY}
        self._stream = server.stream("/completion", body)
        self.tokens: list[tuple[int, float]] = []
        self.n_while_others_prefill = 0
        self.asl: dict[str, Any] = {}

    def listen(self, others_prefill: threading.Event) -> None:
        for _, event in self._stream:
            for found in event.get("completion_probabilities", ()):
                best, second = (one["logprob"] for one in found["top_logprobs"])
                self.tokens.append((found["id"], best - second))
                self.n_while_others_prefill += others_prefill.is_set()
            self.asl = event.get("asl", self.asl)


def alone(server: Server, prompt: Any, n_predict: int, slot: int) -> Asked:
    asked = Asked(server, prompt, n_predict, slot)
    asked.listen(threading.Event())
    return asked


def start(asked: Asked, others_prefill: threading.Event) -> threading.Thread:
    """Returns once its answer has begun: no other prompt takes its part of the batch."""
    thread = threading.Thread(target=asked.listen, args=(others_prefill,))
    thread.start()
    while not asked.tokens:
        assert thread.is_alive()
        time.sleep(0.01)
    return thread


def test_eight_stream_while_long_prompts_prefill(many, document):
    short = [document[20 * i : 20 * i + N_WHOLE] for i in range(N_STREAMS)]
    long = [[*document[i + 1 :], *document[: i + 1]] for i in range(N_LONG)]
    expected = [alone(many, tokens, N_PREDICT, i) for i, tokens in enumerate(short)]
    expected += [alone(many, tokens, 16, N_STREAMS + i) for i, tokens in enumerate(long)]
    prefilling, found, threads = threading.Event(), [], []
    for i, tokens in enumerate(short):
        found.append(Asked(many, tokens, N_PREDICT, i))
        threads.append(start(found[-1], prefilling))
    prefilling.set()
    late = [Asked(many, tokens, 16, N_STREAMS + i) for i, tokens in enumerate(long)]
    threads += [threading.Thread(target=asked.listen, args=(threading.Event(),)) for asked in late]
    for thread in threads[N_STREAMS:]:
        thread.start()
    while not any(asked.tokens for asked in late):
        assert threads[-1].is_alive()
        time.sleep(0.01)
    prefilling.clear()
    for thread in threads:
        thread.join()
    assert all(asked.n_while_others_prefill > 5 for asked in found)
    assert all(asked.asl["pruned"] for asked in late)
    for i, (one, other) in enumerate(zip([*found, *late], expected, strict=True)):
        assert one.tokens == other.tokens, f"request {i}"
