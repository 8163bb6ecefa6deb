"""LoRA adapters: prompts are pruned with those that a request names, and K/V of others never serve it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from cut_gguf import cut
from serving import Server, serving
from tiny_adapter import write_adapter, write_control_vector

FLAGS = "-np 2 -c 4096 -t 1 -fa off --asl-dequant off --asl-room 256 --cache-ram 64".split()
N_EMBD, N_LAYER = 576, 4
"""of the first layers of SmolLM2"""
NONE: list[dict[str, Any]] = [{"id": 0, "scale": 0.0}]
SETS = [NONE, [{"id": 0, "scale": 1.0}], [{"id": 0, "scale": 0.5}], [{"id": 1, "scale": 1.0}]]
SETS.append([*SETS[1], *SETS[3]])
TAIL = [198, 198, 2683, 19617]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def model(smollm2: Path, folder: Path) -> Path:
    cut(smollm2, folder / "cut.gguf", N_LAYER)
    return folder / "cut.gguf"


@pytest.fixture(scope="module")
def adapters(folder: Path) -> list[Path]:
    return [write_adapter(folder / f"{i}.gguf", i, n_embd=N_EMBD, n_layer=N_LAYER, size=0.2) for i in range(2)]


@pytest.fixture(scope="module")
def loaded(adapters: list[Path], folder: Path) -> list[str]:
    """Flags: both adapters, neither on."""
    paths = ",".join(str(path) for path in adapters)
    return [*FLAGS, "--lora", paths, "--lora-init-without-apply", "--slot-save-path", str(folder)]


@pytest.fixture(scope="module")
def pruning(model: Path, loaded: list[str]):
    with serving(model, *loaded, "--asl-budget", "0.2") as server:
        yield server


def fresh(server: Server, prompt: list[int], lora: list[dict[str, Any]]) -> str:
    return server.complete(prompt, cache_prompt=False, id_slot=1, lora=lora)["content"]


def logprobs(server: Server, prompt: list[int], lora: list[dict[str, Any]]) -> list[float]:
    answer = server.complete(prompt, lora=lora, n_probs=1, cache_prompt=False)
    return [one["top_logprobs"][0]["logprob"] for one in answer["completion_probabilities"]]


def test_nothing_pruned_is_stocks(model, loaded, document):
    """Each set of adapters, one after another and back."""
    found = []
    for budget in ("none", "1.0"):
        with serving(model, *loaded, "--asl-budget", budget) as server:
            asked = [document, document[:30]]
            found.append([logprobs(server, prompt, lora) for lora in [*SETS, NONE] for prompt in asked])
    for stock, ours in zip(*found):
        assert ours == pytest.approx(stock, abs=0.02)
    assert len({tuple(one) for one in found[1]}) == 2 * len(SETS)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pruned_answers_are_those_of_llama(pruning, model, adapters, document, scale):
    answer = pruning.complete(document, cache_prompt=False, lora=[{"id": 0, "scale": scale}])
    options = {"n_ctx": 2048, "asl_budget": 0.2, "asl_room": 256, "asl_dequant": False, "n_threads_batch": 1}
    with closing(Llama(str(model), n_threads=1, lora_path=str(adapters[0]), lora_scale=scale, **options)) as llm:
        expected = llm.create_completion(document, max_tokens=8, temperature=0)["choices"][0]["text"]
        assert answer["content"] == expected
        assert answer["asl"]["pruned"] and answer["asl"]["kept_tokens"] == llm.last_prefill.kept_tokens


@pytest.mark.parametrize("n_tokens", [700, 60], ids=["pruned", "whole"])
def test_no_slot_serves_what_other_adapters_computed(pruning, document, n_tokens):
    """By a request's adapters, and by those that are set for all."""
    prompt = document[:n_tokens]
    expected = [fresh(pruning, prompt, lora) for lora in SETS]
    for lora, answer in zip([*SETS, NONE], [*expected, expected[0]]):
        found = pruning.complete(prompt, id_slot=0, lora=lora)
        assert found["content"] == answer and found["asl"]["cached_tokens"] == 0
        assert found["asl"]["pruned"] == (n_tokens > 256)
    try:
        for lora, answer in zip(SETS[1:], expected[1:]):
            assert pruning.post("/lora-adapters", lora)[0] == 200
            found = pruning.complete(prompt, id_slot=0)
            assert found["content"] == answer and found["asl"]["cached_tokens"] == 0
    finally:
        assert pruning.post("/lora-adapters", NONE)[0] == 200


def test_a_turn_with_the_same_ones_is_reused(pruning, document):
    first = pruning.complete(document, id_slot=0, lora=SETS[1], return_tokens=True)
    turn = [*document, *first["tokens"], *TAIL]
    assert pruning.complete(turn, id_slot=0, lora=SETS[1])["asl"]["cached_tokens"] >= len(document)
    assert pruning.complete(turn, id_slot=0, lora=SETS[2])["asl"]["cached_tokens"] == 0


def test_slot_files_and_the_ram_cache_know_them(pruning, document):
    """Adapters are set for all: where a request names others than the one before, llama-server empties the slot first."""

    def answer(prompt: list[int], lora: list[dict[str, Any]]) -> dict[str, Any]:
        assert pruning.post("/lora-adapters", lora)[0] == 200
        return pruning.complete(prompt, id_slot=0)

    try:
        for prompt in (document[:500], document[:70]):
            without, turn = fresh(pruning, prompt, NONE), [*prompt, *TAIL]
            answer(prompt, SETS[1])
            assert pruning.post("/slots/0?action=save", {"filename": "adapted.bin"})[0] == 200
            pruning.complete("Something else altogether", id_slot=0)  # the RAM cache has it now
            assert answer(prompt, NONE)["content"] == without
            for lora, is_cached in ((NONE, False), (SETS[2], False), (SETS[1], True)):
                assert pruning.post("/slots/0?action=erase", {})[0] == 200
                assert pruning.post("/slots/0?action=restore", {"filename": "adapted.bin"})[0] == 200
                found = answer(turn, lora)
                assert (found["asl"]["cached_tokens"] >= len(prompt)) == is_cached
                if not is_cached:
                    assert found["content"] == fresh(pruning, turn, lora)
    finally:
        assert pruning.post("/lora-adapters", NONE)[0] == 200


def test_slot_files_know_control_vectors(model, document, folder):
    flags = [*FLAGS, "--asl-budget", "0.2", "--slot-save-path", str(folder)]
    vector = str(write_control_vector(folder / "vector.gguf", N_EMBD, N_LAYER, size=3.0))
    prompt = document[:70]
    with serving(model, *flags, "--control-vector", vector) as server:
        server.complete(prompt, id_slot=0)
        assert server.post("/slots/0?action=save", {"filename": "steered.bin"})[0] == 200
    for given, is_cached in (([], False), (["--control-vector", vector], True)):
        with serving(model, *flags, *given) as server:
            assert server.post("/slots/0?action=restore", {"filename": "steered.bin"})[0] == 200
            found = server.complete([*prompt, *TAIL], id_slot=0)
            assert (found["asl"]["cached_tokens"] > 0) == is_cached


def test_an_activated_adapter_goes_on_from_the_prompt_without_it(model, document, folder):
    """As in llama-server: K/V in front of its invocation are of no adapter. What it computed serves no other."""
    path = write_adapter(folder / "alora.gguf", 2, n_embd=N_EMBD, n_layer=N_LAYER, size=0.2, invocation=TAIL[:2])
    invoked = [*document[:100], *TAIL]
    with serving(model, *FLAGS, "--asl-budget", "0.2", "--lora", str(path)) as server:
        alone = fresh(server, invoked, SETS[1])
        for prompt, lora, n_cached in ((invoked[:100], NONE, 0), (invoked, SETS[1], 99), (invoked, NONE, 0)):
            found = server.complete(prompt, id_slot=0, lora=lora)
            assert found["timings"]["cache_n"] == n_cached
            assert lora == NONE or found["content"] == alone


def test_a_shifted_context_remembers_them(model, loaded, document):
    """Cells that were shifted are still of the adapters that computed them."""
    prompt = document[:200]
    with serving(model, *loaded, "--asl-budget", "0.2", "-c", "512", "--context-shift") as server:
        assert server.post("/lora-adapters", NONE)[0] == 200
        without = fresh(server, prompt, NONE)
        assert server.complete(prompt, 100, id_slot=0, lora=SETS[1], n_keep=150, ignore_eos=True)["truncated"]
        found = server.complete(prompt, id_slot=0)  # names none: where a request does, llama-server empties the slot
        assert found["asl"]["cached_tokens"] == 0
        assert found["content"] == without


def test_slots_with_different_ones_answer_as_alone(pruning, document):
    """At once: a prefill's slices run with its own adapters, whatever others decode with."""
    asked = [(document, SETS[1]), (document[:-1], NONE)]
    alone = [fresh(pruning, prompt, lora) for prompt, lora in asked]
    bodies = [
        {"prompt": prompt, "lora": lora, "n_predict": 8, "temperature": 0, "cache_prompt": False, "id_slot": slot}
        for slot, (prompt, lora) in enumerate(asked)
    ]
    streams = [pruning.stream("/completion", body) for body in bodies]
    texts = ["".join(event["content"] for _, event in stream) for stream in streams]
    assert texts == alone


def test_kv_on_the_host_is_of_the_same_ones(model, loaded, document):
    with serving(model, *loaded, "--asl-budget", "0.2", "--asl-full-kv", "on") as server:
        other = [*document[:-5], *TAIL]
        server.complete(document, id_slot=0, lora=NONE)
        found = server.complete(other, id_slot=0, lora=SETS[1])
        assert found["asl"]["cached_tokens"] == 0
        alone = server.complete(other, id_slot=1, lora=SETS[1], cache_prompt=False, asl={"full_kv": False})
        assert found["content"] == alone["content"] and alone["asl"]["cached_tokens"] == 0
        assert server.complete(document, id_slot=1, lora=SETS[1])["asl"]["cached_tokens"] > 0  # of the same ones
