"""The endpoint on models with recurrent states or shared K/V: slots are pruned, turn by turn, and states stay apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from asl_gguf import Llama
from serving import Server, serving
from tiny_kinds import write_kind

ARGUMENTS = "--asl-policy snapkv:window=16 --asl-dequant off --asl-room 128 -np 2 -c 2048 -t 1 -fa off -b 64 -ub 64"
PRUNED = ("--asl-budget", "0.3", "--asl-min-prompt", "40")


def prompt(n_tokens: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(20, 250, n_tokens).tolist()


@pytest.fixture(scope="module", params=["delta-net", "shared-kv"])
def path(request, tmp_path_factory) -> Path:
    return write_kind(tmp_path_factory.mktemp("kinds") / f"{request.param}.gguf", request.param, text=True)


@pytest.fixture(scope="module")
def server(path) -> Iterator[Server]:
    with serving(path, *ARGUMENTS.split(), *PRUNED) as running:
        yield running


def ask(server: Server, tokens: list[int], **body: object) -> dict:
    return server.complete(tokens, 6, ignore_eos=True, return_tokens=True, **body)


@pytest.mark.compact
def test_turns_are_pruned_and_nothing_is_stale(server, path):
    """Between the turns of one slot another one answers; who leaves what was said begins anew, as `Llama` answers it."""
    first, turn = prompt(100, 1), prompt(60, 2)  # the models were "trained" on 256 tokens
    answer = ask(server, first, id_slot=0)
    assert answer["asl"]["kept_tokens"] == 30 and answer["asl"]["cached_tokens"] == 0
    ask(server, prompt(90, 3), id_slot=1)
    whole = first + answer["tokens"]
    found = ask(server, whole + turn, id_slot=0)
    assert found["asl"]["cached_tokens"] in (105, 106) and found["asl"]["kept_tokens"] < 30 + 6 + 25
    assert ask(server, whole + turn + found["tokens"] + [70, 71], id_slot=0)["asl"]["cached_tokens"] > 160
    pruned = {"asl_budget": 0.3, "asl_min_prompt": 40, "asl_policy": "snapkv:window=16", "asl_room": 128}
    options = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1, "n_batch": 64, "n_ubatch": 64, "verbose": False}
    with closing(Llama(str(path), **options, **pruned, asl_dequant=False)) as llm:
        for tokens in (first, first[:70] + turn):
            expected = llm.create_completion(tokens, max_tokens=6, temperature=0)["choices"][0]["text"]
            again = ask(server, tokens, id_slot=0)
            assert again["asl"]["cached_tokens"] == 0 and again["content"].startswith(expected[:1])
            assert again["asl"]["kept_tokens"] == llm.last_prefill.kept_tokens


def test_every_question_selects_again(path):
    document = prompt(150, 4)
    with serving(path, *ARGUMENTS.split(), *PRUNED, "--asl-full-kv", "on") as server:
        ask(server, document)
        for seed in (5, 6):
            answer = ask(server, document + prompt(40, seed))
            assert answer["asl"]["cached_tokens"] == 150 and answer["asl"]["host_kv_bytes"] > 0
