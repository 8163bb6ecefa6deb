"""The endpoint on SmolLM2: answers, streams, turns, what is never served stale, and clients that vanish."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import pytest

from asl_gguf import Llama
from patience import PATIENCE
from serving import Server, gaps, serving

TAIL = [198, 198, 2683, 19617]


@pytest.fixture(scope="module")
def llama(smollm2: Path):
    llm = Llama(
        str(smollm2), n_ctx=2048, asl_budget=0.2, asl_room=256, asl_dequant=False, n_threads=1, n_threads_batch=1
    )
    yield llm
    llm.close()


def fresh_answer(llama: Llama, tokens: list[int], n_predict: int = 8) -> str:
    llama.reset()
    return llama.create_completion(tokens, max_tokens=n_predict, temperature=0)["choices"][0]["text"]


def changed(tokens: list[int], at: int) -> list[int]:
    """Another history: one token differs."""
    return [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]


def own(document: list[int], number: int) -> list[int]:
    """The document with another start for each test: the RAM cache remembers what went before."""
    return changed(document, number)


def erase(server: Server) -> None:
    for slot in range(3):
        assert server.post(f"/slots/{slot}?action=erase", {})[0] == 200


@pytest.mark.compact
def test_answers_are_those_of_llama(server, llama, document):
    document = own(document, 1)
    for tokens in (document, document[:300], document[:40]):
        answer = server.complete(tokens, cache_prompt=False)
        assert answer["content"] == fresh_answer(llama, tokens)
        assert answer["asl"]["kept_tokens"] == llama.last_prefill.kept_tokens
        assert answer["asl"]["selection_layer"] == llama.last_prefill.selection_layer
        assert answer["asl"]["pruned"] == (len(tokens) > 256)
        assert answer["tokens_evaluated"] == len(tokens)


@pytest.mark.compact
def test_a_stream_says_the_same(server, document):
    whole = server.complete(document, 12, cache_prompt=False)
    events = [
        event for _, event in server.stream("/completion", {"prompt": document, "n_predict": 12, "temperature": 0})
    ]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert events[-1]["asl"]["prompt_tokens"] == len(document)
    assert not any("asl" in event for event in events[:-1])


def test_progress_tells_the_truth(server, document):
    body = {"prompt": document, "n_predict": 2, "temperature": 0, "return_progress": True, "cache_prompt": False}
    progress = [
        event["prompt_progress"] for _, event in server.stream("/completion", body) if "prompt_progress" in event
    ]
    processed = [event["processed"] for event in progress]
    assert len(processed) > 5 and processed == sorted(processed)
    assert processed[0] == 0 and processed[-1] == len(document)
    assert {event["total"] for event in progress} == {len(document)}


@pytest.mark.compact
def test_others_stream_while_a_prompt_prefills(server, document, record_property):
    times: list[float] = []

    def listen() -> None:
        body = {"prompt": "Once upon a time", "n_predict": 200, "temperature": 0, "ignore_eos": True, "id_slot": 1}
        times.extend(when for when, event in server.stream("/completion", body) if event["content"])

    listener = threading.Thread(target=listen)
    listener.start()
    while len(server.slots()[1].get("next_token", [])) == 0 or server.slots()[1]["next_token"][0]["n_decoded"] < 5:
        time.sleep(0.01)
    begin = time.perf_counter()
    server.complete(document, 1, cache_prompt=False, id_slot=0)
    end = time.perf_counter()
    listener.join()
    inside = gaps(times, begin, end)
    record_property("longest_gap_ms", round(inside[-1] * 1000))
    record_property("prefill_seconds", round(end - begin, 2))
    print(f"longest gap {inside[-1] * 1000:.0f} ms, {len(inside)} tokens in a prefill of {end - begin:.2f} s")
    assert len(inside) > 10
    found = re.search(r"^asl:longest_slice_cpu_seconds (\S+)", server.get("/metrics")[1], re.MULTILINE)
    record_property("longest_slice_cpu_ms", round(float(found[1]) * 1000))
    print(f"longest slice {float(found[1]) * 1000:.0f} ms of CPU time")
    # on the one thread that computes; bench/server/run.py holds it to twice --asl-slice-ms. Beside five jobs on two cores it was 0.1
    assert 0 < float(found[1]) < 0.3


def test_two_prompts_at_once_answer_as_alone(server, llama, document):
    document = own(document, 9)
    prompts = [document, changed(document, 100)]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = server.complete(prompts[i], cache_prompt=False, id_slot=i)["content"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[0], answers[1]] == [fresh_answer(llama, tokens) for tokens in prompts]


@pytest.mark.compact
def test_the_next_turn_goes_on_from_what_is_kept(server, document):
    document = own(document, 2)
    erase(server)
    first = server.complete(document, 8, return_tokens=True, id_slot=0)
    again = server.complete([*document, *first["tokens"], *TAIL], id_slot=0)
    assert again["asl"]["cached_tokens"] >= len(document)
    assert again["asl"]["pruned"]
    # as a client whose template strips what was thought: the answer differs, the prompt is there whole
    other = server.complete([*document, *TAIL], id_slot=0)
    assert len(document) <= other["asl"]["cached_tokens"] < len(document) + len(TAIL)


@pytest.mark.parametrize("at", [0, pytest.param(350, marks=pytest.mark.compact), -1], ids=["first", "middle", "last"])
def test_edited_history_is_not_served_stale(server, llama, document, at):
    document = own(document, 3)
    erase(server)
    server.complete(document, id_slot=0)
    edited = changed(document, at % len(document))
    answer = server.complete(edited, id_slot=0)
    assert answer["asl"]["cached_tokens"] == 0
    assert answer["content"] == fresh_answer(llama, edited)


@pytest.mark.parametrize("n_tokens", [400, None], ids=["start", "whole"])
def test_no_part_of_a_pruned_prompt_is_served_from_it(server, llama, document, n_tokens):
    document = own(document, 4)
    erase(server)
    server.complete(document, id_slot=0)
    answer = server.complete(document[:n_tokens], id_slot=0)
    assert answer["asl"]["cached_tokens"] == 0
    assert answer["content"] == fresh_answer(llama, document[:n_tokens])


def test_the_ram_cache_keeps_to_the_rule(server, llama, document):
    document = own(document, 5)
    erase(server)
    first = server.complete(document, 8, return_tokens=True, id_slot=0)
    for slot in range(3):  # the conversation leaves its slot for the RAM cache
        server.complete(f"Something else altogether, {slot}", id_slot=slot)
    question = changed(document, -100 % len(document))
    answer = server.complete(question, id_slot=0)
    assert answer["asl"]["cached_tokens"] == 0
    assert answer["content"] == fresh_answer(llama, question)
    server.complete("And now for something completely different", id_slot=0)
    back = server.complete([*document, *first["tokens"], *TAIL], id_slot=0)
    assert back["asl"]["cached_tokens"] >= len(document)


@pytest.mark.compact
def test_slot_files_keep_to_the_rule(server, llama, document):
    document = own(document, 6)
    erase(server)
    first = server.complete(document, 8, return_tokens=True, id_slot=0)
    assert server.post("/slots/0?action=save", {"filename": "pruned.bin"})[0] == 200
    for tokens, is_cached in ((changed(document, 350), False), ([*document, *first["tokens"], *TAIL], True)):
        erase(server)
        status, answer = server.post("/slots/0?action=restore", {"filename": "pruned.bin"})
        assert status == 200, answer
        assert server.slots()[0]["asl"]["n_pruned"] == len(document)
        answer = server.complete(tokens, id_slot=0)
        assert (answer["asl"]["cached_tokens"] >= len(document)) == is_cached
        if not is_cached:
            assert answer["content"] == fresh_answer(llama, tokens)


def test_children_share_the_cells(server, llama, document):
    document = own(document, 7)
    status, answers = server.post(
        "/v1/completions", {"prompt": document, "n": 2, "max_tokens": 8, "temperature": 0, "cache_prompt": False}
    )
    assert status == 200, answers
    assert {choice["text"] for choice in answers["choices"]} == {fresh_answer(llama, document)}


@pytest.mark.parametrize("after", ["prefill", "decode"])
def test_a_client_that_leaves(server, llama, document, after):
    document = own(document, 8)
    erase(server)
    body = {"prompt": document, "n_predict": 200, "temperature": 0, "ignore_eos": True, "id_slot": 0}
    stream = server.stream("/completion", body)
    if after == "decode":
        for _, event in stream:
            if event["content"]:
                break
    else:
        server.wait_until_busy()
    stream.close()
    # llama.cpp's server notices at the first token that it cannot send, not in the prefill
    server.wait_until_idle()
    answer = server.complete(document, id_slot=0)
    assert answer["content"] == fresh_answer(llama, document)


def test_an_answer_ends_at_the_end_of_its_cells_and_no_other(server, document):
    erase(server)
    others: list[int] = []

    def listen() -> None:
        body = {"prompt": "One two three", "n_predict": 400, "temperature": 0, "ignore_eos": True, "id_slot": 1}
        others.extend(1 for _, event in server.stream("/completion", body) if event["tokens"])

    listener = threading.Thread(target=listen)
    listener.start()
    answer = server.complete(document, 1500, ignore_eos=True, id_slot=0)
    listener.join()
    assert answer["truncated"] and answer["stop_type"] == "limit"
    assert 256 <= answer["tokens_predicted"] < 1000
    assert len(others) == 400


def test_a_prompt_that_must_not_be_pruned_and_does_not_fit_is_refused(server, document):
    body = {"prompt": [*document, *document], "n_predict": 1, "backend_sampling": True}
    status, answer = server.post("/completion", body)
    assert status == 400 and "backend sampling" in answer["error"]["message"]
    short = server.complete(document[:300], 2, backend_sampling=True)
    assert "backend sampling" in short["asl"]["reason"] and not short["asl"]["pruned"]


@pytest.mark.compact
def test_requests_choose_under_the_servers_limit(server, document):
    smaller = server.complete(document, 2, cache_prompt=False, asl={"budget": 0.1, "policy": "snapkv"})["asl"]
    assert smaller["kept_tokens"] == len(document) // 10 and smaller["policy"] == "snapkv"
    larger = server.complete(document, 2, cache_prompt=False, asl={"budget": 0.9})["asl"]
    assert larger["kept_tokens"] == len(document) // 5


@pytest.mark.compact
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (3, "an object"),
        ({"budget": 0}, "asl_budget"),
        ({"budget": "much"}, "budget"),
        ({"policy": "none-such"}, "policy"),
        ({"policy": "pyramidinfer"}, "as many rows"),
        ({"buget": 0.1}, "buget"),
        ({"guard": 2}, "guard"),
        ({"protect": "user"}, "protect"),
    ],
)
def test_wrong_options_are_refused(server, options, said):
    status, answer = server.post("/completion", {"prompt": "Hello", "n_predict": 1, "asl": options})
    assert status == 400 and said in answer["error"]["message"]


@pytest.mark.compact
def test_what_is_protected_may_be_more_than_the_budget(server):
    """The question of a short chat, or an agent's tools: it was refused."""
    question = "The sky is blue. " * 60
    messages = [{"role": "user", "content": "The sea is green. " * 60}, {"role": "user", "content": question}]
    body = {
        "messages": messages,
        "max_tokens": 2,
        "cache_prompt": False,
        "asl": {"protect": ["question"], "budget": 0.1},
    }
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    report = answer["asl"]
    assert report["protected_tokens"] > 0.3 * report["prompt_tokens"] and report["pruned"]
    assert report["protected_tokens"] < report["kept_tokens"] < report["prompt_tokens"]
    # more than the slot's cells
    body["messages"] = [{"role": "user", "content": "The sky is blue. " * 300}]
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 400 and "protect less" in answer["error"]["message"]


@pytest.mark.compact
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_each_way_to_ask_protects_what_it_names(server, path):
    """llama.cpp marks messages of users alone, and of some templates none: system messages were not protected."""
    system, question = "You look at ships. " * 30, "The sky is blue. " * 30
    turns = [{"role": "user", "content": "The sea is green. " * 30}, {"role": "user", "content": question}]
    body = {"model": "any", "max_tokens": 2, "cache_prompt": False}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "system", "content": system}, *turns]
    elif path == "/v1/messages":
        body |= {"system": system, "messages": turns}
    else:
        body |= {"instructions": system, "input": turns}
    for roles, least in ((["system"], 140), (["tools"], 140), (["question"], 140), (["system", "question"], 280)):
        status, answer = server.post(path, {**body, "asl": {"protect": roles}})
        assert status == 200, answer
        report = answer["asl"]
        assert least < report["protected_tokens"] < least + 40 and report["pruned"], (roles, report)
        assert report["protected_tokens"] < report["kept_tokens"] < report["prompt_tokens"]


def test_fields_that_a_client_chooses(server, document):
    chosen = server.complete(document, 2, response_fields=["content", "asl/kept_tokens", "asl"])
    assert set(chosen) == {"content", "asl/kept_tokens", "asl"}
    assert chosen["asl"]["kept_tokens"] == chosen["asl/kept_tokens"] == len(document) // 5
    assert set(server.complete(document, 2, response_fields=["content"])) == {"content"}


@pytest.mark.compact
def test_anthropic_answers_carry_the_report(server):
    body = {"model": "any", "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello"}]}
    status, answer = server.post("/v1/messages", body)
    assert status == 200 and answer["asl"]["reason"]
    events = [event for _, event in server.stream("/v1/messages", body)]
    assert [event["type"] for event in events if "asl" in event] == ["message_delta"]


@pytest.mark.compact
def test_props_and_slots_know_about_it(server):
    assert server.get("/props")[1]["asl"]["budget"] == 0.2
    assert server.get("/props")[1]["default_generation_settings"]["n_ctx"] == 2048
    assert [slot["n_ctx"] for slot in server.slots()] == [2048] * 3


@pytest.mark.compact
def test_openai_parses_the_answers(server, document):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "The sky is blue. " * 80 + "What colour is the sky? Answer in a sentence."}]
    kwargs = {
        "model": "any",
        "messages": messages,
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": {"asl": {"budget": 0.15}},
    }
    answer = client.chat.completions.create(**kwargs)
    assert answer.choices[0].message.content and answer.asl["kept_tokens"] < answer.usage.prompt_tokens
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **kwargs))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens and chunks[-1].asl["pruned"]


@pytest.mark.compact
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_the_middle_of_a_prefill(smollm2, arguments, document, number):
    with serving(smollm2, *arguments) as server:
        stream = server.stream("/completion", {"prompt": document, "n_predict": 4})
        while not any(slot["is_processing"] for slot in server.slots()):
            time.sleep(0.02)
        server.process.send_signal(number)
        stream.close()  # llama.cpp's server waits for clients that stay
        assert server.process.wait(PATIENCE) == 0, server.output()
