"""Slots over a context of many sequences, without the server: what it asks, and what it does with the answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from asl_gguf.engine.place import SharedContext
from asl_gguf.errors import ContextFullError, OptionError, OutOfMemoryError
from asl_gguf.native import context
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.server.hosts import Hosts
from asl_gguf.server.options import Options
from asl_gguf.server.rule import Rules
from asl_gguf.server.slots import Incoming, Slot, protected_tokens
from harness import Options as ContextOptions
from harness import assert_same, prompt
from sequences import Sequences
from tiny_adapter import write_adapter

N_CTX, N_CELLS = 512, 256
LONG = prompt(300, seed=1)
FLAGS = {
    "budget": "0.3",
    "policy": "asl-span:window=16:min_layer=2:obs_layers=2:tau=2.0",
    "room": "64",
    "min_prompt": "32",
    "dequant": "off",
}


@pytest.fixture
def shared(load_tiny):
    with load_tiny("llama").context(ContextOptions(n_ctx=2 * N_CELLS, n_seq_max=2)) as context:
        yield context


@pytest.fixture
def make_slot(shared, tiny_model):
    options = Options.make(FLAGS)
    rules = Rules(options, str(tiny_model("llama")), N_CTX)

    def make(seq_id: int = 0) -> Slot:
        def place(progress):
            return SharedContext(shared.handle, seq_id, shared.params, N_CTX, dequant="off", progress=progress)

        return Slot(place, rules, options, N_CTX)

    return make


def incoming(tokens, n_past=0, n_pruned=0, n_dropped=0, n_answer=8, **more) -> Incoming:
    return Incoming(tokens, n_past, n_pruned, n_dropped, n_answer, **more)


def run(slot: Slot, prompt_: Incoming) -> None:
    assert slot.plan(prompt_)
    while slot.step(0.0):
        assert 0 <= slot.n_done <= len(prompt_.tokens)


def test_a_prompt_is_pruned_and_goes_on(make_slot, shared):
    slot = make_slot()
    run(slot, incoming(LONG))
    report = slot.report()
    assert report["pruned"] and report["kept_tokens"] == 90 and report["cached_tokens"] == 0
    assert (slot.n_past, slot.n_pruned, slot.n_dropped) == (300, 300, 210)
    # the server decodes an answer; another object, which remembers nothing, goes on from what the server says
    Sequences(shared).decode(0, prompt(5, seed=2))
    more = [*LONG, *prompt(5, seed=2), *prompt(9, seed=3)]
    other = make_slot()
    assert not other.plan(incoming(more, 305, 300, 210))
    assert other.n_past == 305 and other.report()["cached_tokens"] == 305 and other.report()["pruned"]
    assert other.report()["kept_tokens"] == 90 + 5 + 9


def test_a_slice_is_one_step_where_no_time_is_given(make_slot):
    slot = make_slot()
    assert slot.plan(incoming(LONG))
    n_slices = 0
    while slot.step(0.0):
        n_slices += 1
    assert n_slices > 10
    whole = make_slot(1)
    assert whole.plan(incoming(LONG))
    assert not whole.step(60.0)


def test_slots_answer_alike_whatever_ran_before(make_slot, shared):
    run(make_slot(0), incoming(prompt(200, seed=9)))
    slot = make_slot(0)
    run(slot, incoming(LONG))  # n_past 0: what the cells held is dropped
    first = shared.logits()
    run(make_slot(1), incoming(LONG))
    assert_same([shared.logits()], [first], "another slot")


def test_cancelled_prompts_leave_nothing(make_slot):
    slot = make_slot()
    assert slot.plan(incoming(LONG))
    slot.step(0.0)
    slot.cancel()
    run(slot, incoming(LONG))
    assert slot.n_dropped == 210


def test_short_prompts_are_the_servers(make_slot):
    slot = make_slot()
    assert not slot.plan(incoming(LONG[:20]))
    assert slot.n_past == 0 and slot.report()["reason"] and not slot.report()["pruned"]


def test_requests_are_capped(make_slot):
    slot = make_slot()
    for options, n_kept in (('{"budget": 0.2}', 60), ('{"budget": 0.9}', 90), ('{"policy": "snapkv:window=16"}', 90)):
        run(slot, incoming(LONG, options=f'{{"asl": {options}}}'))
        assert slot.report()["kept_tokens"] == n_kept
    assert slot.report()["policy"] == "snapkv"
    run(slot, incoming(LONG))
    assert slot.report()["policy"] == "asl-span"
    with pytest.raises(OptionError):
        slot.plan(incoming(LONG, options='{"asl": {"policy": "snapkv:window=16", "budget": 5}}'))


def test_what_must_not_be_pruned_fits_or_is_refused(make_slot):
    slot = make_slot()
    assert not slot.plan(incoming(LONG[:100], unprunable="of a reason"))
    assert slot.report()["reason"] == "of a reason" and slot.report()["kept_tokens"] == 100
    with pytest.raises(ContextFullError, match="of a reason"):
        slot.plan(incoming(LONG, unprunable="of a reason"))


def test_a_prompt_waits_for_memory_that_others_will_free(shared, tiny_model):
    options = Options.make({**FLAGS, "wait": "600"})
    rules = Rules(options, str(tiny_model("llama")), N_CTX)
    short = [True]

    class Place(SharedContext):
        def open(self, n_rows):
            if short[0]:
                raise OutOfMemoryError("none")
            return super().open(n_rows)

    slot = Slot(
        lambda progress: Place(shared.handle, 0, shared.params, N_CTX, progress=progress), rules, options, N_CTX
    )
    assert slot.plan(incoming(LONG))
    assert slot.step(0.0, others_run=True) and slot.waits and not slot.runs
    assert slot.step(0.0, others_run=True) and slot.waits
    short[0] = False
    while slot.step(0.0, others_run=True):
        assert slot.runs
    assert slot.n_dropped == 210 and not slot.waits
    short[0] = True
    assert slot.plan(incoming(LONG))
    with pytest.raises(OutOfMemoryError):  # nobody would free any
        slot.step(0.0)
    assert slot.plan(incoming(LONG))
    slot.step(0.0, others_run=True)
    slot._waits_since -= 601
    with pytest.raises(OutOfMemoryError):
        slot.step(0.0, others_run=True)


def test_requests_protect_and_guard(make_slot):
    slot = make_slot()
    spans = [(1, 40, 60), (3, 60, 300)]
    run(slot, incoming(LONG, spans=spans, options='{"asl": {"protect": ["system"]}}'))
    assert slot.report()["protected_tokens"] == 20
    run(slot, incoming(LONG, options='{"asl": {"guard": 0.99, "budget": 0.2}}'))
    assert slot.report()["kept_tokens"] > 60 and "asl_guard" in slot.report()["reason"]
    run(slot, incoming(LONG, spans=spans))
    assert slot.report()["protected_tokens"] == 0 and slot.report()["kept_tokens"] == 90


def test_the_first_difference_is_named(make_slot):
    slot = make_slot()
    run(slot, incoming(LONG, n_common=7, other=LONG[7] + 1))
    found = slot.report()["first_difference"]
    assert found["token"] == 7 and set(found) == {"token", "was", "is"}
    for same in ({"n_common": 7, "other": -1}, {"n_common": 300, "other": 5}, {}):
        run(slot, incoming(LONG, **same))
        assert slot.report()["first_difference"] is None


def test_parts_of_a_chat():
    spans = [(1, 1, 10), (3, 10, 20), (2, 20, 30), (3, 30, 40)]
    assert protected_tokens(["system"], spans).tolist() == list(range(1, 10))
    assert protected_tokens(["tools"], spans).tolist() == list(range(10))
    assert protected_tokens(["system"], spans[1:]).tolist() == list(range(10))  # few templates mark it
    assert protected_tokens(["question", "system"], spans).tolist() == [*range(1, 10), *range(30, 40)]
    assert protected_tokens(["question", "tools", "system"], []).tolist() == []


def test_protected_tokens_are_kept(shared, tiny_model):
    options = Options.make({**FLAGS, "protect": "system"})
    rules = Rules(options, str(tiny_model("llama")), N_CTX)
    place = partial(SharedContext, shared.handle, 0, shared.params, N_CTX)
    slot = Slot(lambda progress: place(dequant="off", progress=progress), rules, options, N_CTX)
    run(slot, incoming(LONG, spans=[(1, 40, 60), (3, 60, 300)]))
    assert slot.report()["protected_tokens"] == 20 and slot.report()["kept_tokens"] == 90


@pytest.fixture
def make_slots(shared, tiny_model):
    """Two slots that share K/V of all tokens of their last prompts in host memory."""

    def make(**flags: str) -> list[Slot]:
        options = Options.make({**FLAGS, **flags})
        path = str(tiny_model("llama"))

        def place(seq_id, progress):
            return SharedContext(shared.handle, seq_id, shared.params, N_CTX, dequant="off", progress=progress)

        rules, hosts = Rules(options, path, N_CTX), Hosts.of(options.full_kv, place(0, None), 2)
        return [Slot(partial(place, i), rules, options, N_CTX, hosts=hosts) for i in range(2)]

    return make


def test_another_question_selects_again_from_all_tokens_in_any_slot(make_slots, shared):
    first, second = make_slots(full_kv="on")
    run(first, incoming(LONG))
    assert first.report()["host_kv_bytes"] > 0 and first.report()["cached_tokens"] == 0
    other = [*LONG[:270], *prompt(30, seed=8)]
    run(second, incoming(other))
    report, logits = second.report(), shared.logits()
    assert 200 < report["cached_tokens"] <= 270 and report["pruned"]
    (alone, _) = make_slots()
    run(alone, incoming(other))
    assert alone.report()["kept_tokens"] == report["kept_tokens"] and alone.report()["host_kv_bytes"] == 0
    assert np.abs(logits - shared.logits()).max() < 1e-3  # chunks end elsewhere


def test_a_conversation_selects_again_with_each_turn(make_slots):
    slot, _ = make_slots(full_kv="q8_0")
    run(slot, incoming(LONG))
    more = [*LONG, *prompt(40, seed=3)]
    run(slot, incoming(more, 300, 300, 210))
    assert "selected again" in slot.report()["reason"] and slot.report()["kept_tokens"] == 102
    assert slot.report()["cached_tokens"] > 200


def test_nobody_takes_what_another_slot_works_with(make_slots):
    first, second = make_slots(full_kv="on")
    assert first.plan(incoming(LONG))
    first.step(0.0)
    run(second, incoming(LONG))  # as the host has nothing of it yet, from the first token
    while first.step(0.0):
        pass
    assert first.report()["cached_tokens"] == second.report()["cached_tokens"] == 0
    run(second, incoming([*LONG[:270], *prompt(30, seed=8)]))
    run(first, incoming([*LONG[:260], *prompt(30, seed=9)]))
    assert min(first.report()["cached_tokens"], second.report()["cached_tokens"]) > 200


def test_each_prompt_runs_with_its_own_adapters(make_slots, shared, tmp_path):
    """And K/V on the host are of the same ones."""
    slots = make_slots(full_kv="on")
    path = str(write_adapter(tmp_path / "lora.gguf")).encode()
    adapter = llama_cpp.llama_adapter_lora_init(llama_cpp.llama_get_model(shared.handle), path)
    found = []
    sets: list[dict[str, Any]] = [
        {},
        {"adapters": [(adapter, 1.0)], "adapters_id": 1},
        {"adapters": [(adapter, 0.5)], "adapters_id": 2},
        {},
    ]
    for i, adapters in enumerate(sets):
        run(slots[i % 2], incoming(LONG, **adapters))
        assert slots[i % 2].report()["cached_tokens"] == 0
        found.append(shared.logits().copy())
    llama_cpp.llama_adapter_lora_free(adapter)
    assert np.array_equal(found[0], found[3])
    assert min(np.abs(found[i] - found[j]).max() for i in range(3) for j in range(i)) > 1e-3
    assert context.adapters(shared.handle) == "none"


def test_a_budget_that_follows_the_question(make_slots):
    """This model has no thresholds: the upper limit, and why."""
    first, second = make_slots(budget="auto:0.1-0.3")
    assert first.plan(incoming(LONG))
    first.step(0.0)
    run(second, incoming(LONG[:200], options='{"asl": {"budget": 0.2}}'))
    while first.step(0.0):
        pass
    assert first.report()["kept_tokens"] == 90 and "auto:0.1-0.3: 90 tokens" in first.report()["budget_choice"]
    assert second.report()["kept_tokens"] == 40 and second.report()["budget_choice"] is None
    run(second, incoming(LONG, options='{"asl": {"budget": "auto:0.1-0.2"}}'))
    assert second.report()["kept_tokens"] == 60 and "auto:0.1-0.2" in second.report()["budget_choice"]
    run(second, incoming(LONG, options='{"asl": {"budget": "auto"}}'))  # up to 0.4, under the server's limit
    assert second.report()["kept_tokens"] == 90
    with pytest.raises(OptionError, match="decides at its selection layer"):
        second.plan(incoming(LONG, options='{"asl": {"policy": "snapkv:window=16"}}'))
