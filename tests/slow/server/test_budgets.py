"""Budgets that follow the question, full budgets, K/V of all tokens on the host, and what is refused at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from asl_gguf import Llama
from patience import PATIENCE
from serving import Server, serving

COMMON = "-np 2 -c 4096 -t 1 -fa off --asl-dequant off --asl-room 256".split()


@pytest.fixture(scope="module")
def auto(smollm2: Path):
    with serving(smollm2, *COMMON, "--asl-budget", "auto", "--asl-full-kv", "on") as server:
        yield server


@pytest.fixture(scope="module")
def llama(smollm2: Path):
    llm = Llama(
        str(smollm2), n_ctx=2048, asl_budget="auto", asl_room=256, asl_dequant=False, n_threads=1, n_threads_batch=1
    )
    yield llm
    llm.close()


def test_it_follows_the_question_as_llama_does(auto, llama, document):
    answer = auto.complete(document, cache_prompt=False, id_slot=0)
    assert answer["content"] == llama.create_completion(document, max_tokens=8, temperature=0)["choices"][0]["text"]
    report = answer["asl"]
    assert report["kept_tokens"] == llama.last_prefill.kept_tokens < 0.4 * len(document)
    assert report["budget_choice"] == llama.last_prefill.budget_choice
    assert auto.get("/props")[1]["asl"]["budget"] == "auto"


def test_another_question_in_another_slot_computes_its_own_tokens(auto, document):
    first = [*document[:-10], *document[20:30]]
    auto.complete(first, cache_prompt=False, id_slot=0)
    other = auto.complete([*document[:-10], *document[40:50]], cache_prompt=False, id_slot=1)["asl"]
    assert other["pruned"] and 0.7 * len(document) < other["cached_tokens"] <= len(document) - 10
    assert other["host_kv_bytes"] > 0


def test_a_request_may_leave_no_trace_on_the_host(auto, document):
    """What a client asks to be forgotten serves no other prompt; what others left there stays."""
    secret = [*document[100:], *document[:100]]
    first = auto.complete(secret, cache_prompt=False, id_slot=0, asl={"full_kv": False})["asl"]
    assert first["pruned"] and first["host_kv_bytes"] == 0
    again = auto.complete([*secret[:-10], *document[40:50]], cache_prompt=False, id_slot=1)["asl"]
    assert again["cached_tokens"] == 0 and again["host_kv_bytes"] > 0
    alone = auto.complete([*secret[:-10], *document[60:70]], cache_prompt=False, id_slot=0, asl={"full_kv": False})
    assert alone["asl"]["cached_tokens"] == 0
    third = auto.complete([*secret[:-10], *document[60:70]], cache_prompt=False, id_slot=0)
    assert third["asl"]["cached_tokens"] > 0.7 * len(secret)


def test_a_request_may_follow_the_question(server, document):
    asked = server.complete(document, 2, cache_prompt=False, asl={"budget": "auto:0.05-0.15"})["asl"]
    assert asked["budget_choice"].startswith("auto:0.05-0.15")
    assert len(document) // 20 <= asked["kept_tokens"] <= 0.15 * len(document)
    capped = server.complete(document, 2, cache_prompt=False, asl={"budget": "auto:0.3-0.9"})["asl"]
    assert capped["kept_tokens"] == len(document) // 5
    status, answer = server.post("/completion", {"prompt": "a", "asl": {"budget": "fit:1GiB"}})
    assert status == 400 and "slots share memory" in answer["error"]["message"]


def test_with_all_of_the_budget_answers_are_the_servers_own(smollm2, document):
    answers = []
    for budget in ("1.0", "none"):
        with serving(smollm2, *COMMON, "--asl-budget", budget) as server:
            answers.append(server.complete(document, 24, cache_prompt=False))
    assert answers[0]["content"] == answers[1]["content"]
    assert not answers[0]["asl"]["pruned"] and "asl" not in answers[1]


@pytest.mark.compact
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--asl-budget", "2.5"], "--asl-budget"),
        (["--asl-budget", "fit:1GiB"], "slots share memory and time"),
        (["--asl-budget", "auto", "--asl-policy", "snapkv"], "decides at its selection layer"),
        (["--asl-budget", "none", "--asl-full-kv", "on"], "--asl-full-kv: expected --asl-budget"),
        (["--asl-full-kv", "q4_0"], "--asl-full-kv: expected one of off, on, q8_0"),
    ],
)
def test_it_says_why_it_cannot_start(smollm2, arguments, said):
    server = Server(smollm2, *arguments)
    assert server.process.wait(PATIENCE) == 2 and said in server.output()


def test_rows_that_are_quantised_already_are_not_packed_again(smollm2):
    arguments = "--asl-full-kv q8_0 -fa on -ctk q8_0 -ctv q8_0 -np 1 -c 512 -t 1".split()
    server = Server(smollm2, *arguments)
    assert server.process.wait(PATIENCE) == 1
    assert "--asl-full-kv: expected type_k of f32, f16 or bf16" in server.output()
    assert "pass --asl-full-kv on" in server.output()
    with serving(smollm2, *arguments[2:], "--asl-full-kv", "on") as server:
        assert server.complete("The sky is blue. " * 80, 2)["asl"]["host_kv_bytes"] > 0
