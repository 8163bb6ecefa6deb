"""How long a chunk of a prompt may be."""

from __future__ import annotations

import pytest

from asl_gguf.engine.place import SharedContext
from asl_gguf.server.options import Options
from asl_gguf.server.pace import Pace, measure
from asl_gguf.server.rule import Rules
from asl_gguf.server.slots import Incoming, Slot
from harness import Options as ContextOptions
from harness import prompt

PACE = Pace(seconds_token=1e-3, n_keys_doubling=1000)
N_CTX = 512
FLAGS = {
    "budget": "0.3",
    "policy": "asl-span:window=16:min_layer=2:obs_layers=2:tau=2.0",
    "room": "64",
    "min_prompt": "32",
}


@pytest.mark.parametrize(
    ("n_tokens", "seconds", "most", "chunk"),
    [
        (0, 0.256, 512, 256),
        (0, 0.511, 512, 256),
        (1000, 0.256, 512, 128),
        (3000, 0.256, 512, 64),
        (10**6, 0.001, 512, 64),
        (0, 10.0, 512, 512),
        (0, 10.0, 8, 8),
    ],
)
def test_a_chunk_ends_in_time(n_tokens, seconds, most, chunk):
    assert PACE.chunk(n_tokens, seconds, most) == chunk


def test_tokens_of_a_batch():
    assert PACE.n_whole(0.5, 10) == 50
    assert PACE.n_whole(1e-9, 10) == 8


@pytest.fixture
def shared(load_tiny):
    with load_tiny("llama").context(ContextOptions(n_ctx=512, n_seq_max=2, n_batch=256, n_ubatch=256)) as context:
        yield context


def test_this_machine_is_measured_and_nothing_is_left(shared):
    place = SharedContext(shared.handle, 0, shared.params, N_CTX)
    pace = measure(place)
    assert 0 < pace.seconds_token < 1 and pace.n_keys_doubling > 0
    assert place.n_evaluated == 0 and place.n_cells == 256


@pytest.mark.parametrize("n_chunk", [64, 128])
def test_no_step_of_a_prompt_is_longer_than_its_chunk(shared, tiny_model, n_chunk):
    """Tokens times layers between two steps, which is what a slice cannot divide."""
    options = Options.make({**FLAGS, "dequant": "off", "slice_ms": str(2 * n_chunk + 1)})
    rules = Rules(options, str(tiny_model("llama")), N_CTX)
    work = [0]

    def make_place(progress):
        def note(done, total):
            work.append(done)
            return progress(done, total)

        return SharedContext(shared.handle, 0, shared.params, N_CTX, dequant="off", progress=note)

    slot = Slot(make_place, rules, options, N_CTX, Pace(seconds_token=1e-3, n_keys_doubling=1e9))
    tokens = prompt(300, seed=1)
    assert slot.plan(Incoming(tokens, 0, 0, 0, 8))
    n_steps, n_most, n_before = 0, 0, 0
    while slot.step(0.0):
        n_steps += 1
        n_most, n_before = max(n_most, work[-1] - n_before), work[-1]
    assert n_most == n_chunk
    assert n_steps >= (2 + 2) * (300 // n_chunk)  # contexts are made in steps of their own
    assert slot.report()["pruned"]
