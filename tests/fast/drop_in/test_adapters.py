"""LoRA adapters and control vectors set by llama.cpp's own calls: K/V of other weights are never taken for those of now."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, StateError
from asl_gguf.native import context
from harness import llama_cpp
from tiny_adapter import N_EMBD, N_LAYER, write_adapter
from tiny_llama import DOCUMENT, QUESTIONS, greedy, logits

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": "snapkv"}
ASKED = DOCUMENT + QUESTIONS[0]


@pytest.fixture(name="path")
def make_path(tmp_path) -> Path:
    return write_adapter(tmp_path / "lora.gguf")


def load(llm: Any, path: Path) -> Any:
    adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())
    llm._stack.callback(llama_cpp.llama_adapter_lora_free, adapter)
    return adapter


def set_adapters(llm: Any, *pairs: Any) -> None:
    """(adapter, scale) each, by llama.cpp's own call."""
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(pairs))(*(adapter for adapter, _ in pairs))
    scales = (ctypes.c_float * len(pairs))(*(scale for _, scale in pairs))
    assert llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, len(pairs), scales) == 0


def set_vectors(llm: Any, seed: int) -> None:
    """Control vectors of all layers but the first."""
    values = np.random.default_rng(seed).standard_normal(N_EMBD * (N_LAYER - 1), dtype=np.float32)
    pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(llm.ctx, pointer, values.size, N_EMBD, 1, N_LAYER - 1) == 0


def remove_vectors(llm: Any) -> None:
    assert llama_cpp.llama_set_adapter_cvec(llm.ctx, None, 0, N_EMBD, 1, N_LAYER - 1) == 0


def changes(llm: Any, path: Path) -> list[Any]:
    """Calls that each make the context's weights others."""
    adapter, other = load(llm, path), load(llm, write_adapter(path.with_name("other.gguf"), seed=1))
    return [
        lambda: set_adapters(llm, (adapter, 1.0)),
        lambda: set_adapters(llm, (adapter, 0.5)),
        lambda: set_adapters(llm, (other, 0.5)),
        lambda: set_adapters(llm, (adapter, 1.0), (other, 0.5)),
        lambda: (set_adapters(llm), set_vectors(llm, 0)),
        lambda: set_vectors(llm, 1),
    ]


def test_each_has_its_number(make, path, tmp_path):
    """Of what is in them: another object, a copy of the file and the other order give the same."""
    llm, found = make(**PRUNED), ["none"]
    assert context.adapters(llm.ctx) == "none"
    for change in changes(llm, path):
        change()
        found.append(context.adapters(llm.ctx))
    assert len(set(found)) == len(found)
    copied = tmp_path / "copy.gguf"
    copied.write_bytes(path.read_bytes())
    second = make(**PRUNED)
    adapter, other = load(second, copied), load(second, write_adapter(tmp_path / "other.gguf", seed=1))
    set_adapters(second, (other, 0.5), (adapter, 1.0))
    assert context.adapters(second.ctx) == found[4]
    assert context.adapters(make(**PRUNED, lora_path=str(copied)).ctx) == found[1]
    assert context.adapters(make(**PRUNED, lora_path=str(copied), lora_scale=0.5).ctx) == found[2]
    set_adapters(second, (adapter, 0.0))
    assert context.adapters(second.ctx) == "none"


def test_large_tensors_are_told_apart_by_samples(make, tmp_path):
    """Of 192 KiB each; one number differs at the end."""
    llm, found = make(**PRUNED), set()
    path = write_adapter(tmp_path / "large.gguf", rank=384)
    for change in (b"", b"\x01"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - len(change)] + change)
        set_adapters(llm, (load(llm, path), 1.0))
        found.add(context.adapters(llm.ctx))
    assert len(found) == 2


@pytest.mark.parametrize(
    "options", [PRUNED, PRUNED | {"asl_full_kv": True}, {}], ids=["budget", "full K/V", "no budget"]
)
def test_no_prompt_reuses_what_other_weights_computed(make, path, options):
    """Not even the same prompt, without a reset."""
    llm, fresh = make(**options), make(**options)
    greedy(llm, ASKED)
    for change, other in zip(changes(llm, path), changes(fresh, path)):
        change()
        other()
        fresh.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(fresh.ctx), True)
        assert greedy(llm, ASKED) == greedy(fresh, ASKED)
        assert llm.last_prefill.reused_tokens == 0


@pytest.mark.parametrize("full", [False, True])
def test_files_and_states_of_other_weights_are_refused(make, path, tmp_path, full):
    llm = make(**PRUNED, asl_full_kv=full)
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "p")
    state, expected = llm.save_state(), greedy(llm, ASKED)
    for change in changes(llm, path):
        change()
        for call in (lambda: llm.load_state(state), lambda: llm.load_prompt(tmp_path / "p")):
            with pytest.raises(
                StateError, match="expected a state with LoRA and control vectors [0-9a-f]{16}, got none"
            ):
                call()
    with pytest.raises(StateError, match="expected K/V of the LoRA adapters and control vectors that are set now"):
        llm.save_state()  # its cells are still of those before
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "vectors")
    remove_vectors(llm)
    with pytest.raises(StateError, match="expected a state with LoRA and control vectors none, got [0-9a-f]{16}"):
        llm.load_prompt(tmp_path / "vectors")
    llm.load_prompt(tmp_path / "p")
    assert greedy(llm, ASKED) == expected


def test_a_state_of_an_adapter_serves_where_it_is_set(make, path, tmp_path):
    """By hand or by lora_path, and the loaded state is reused."""
    llm = make(**PRUNED, lora_path=str(path))
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "p")
    expected = greedy(llm, ASKED)
    other = make(**PRUNED)
    set_adapters(other, (load(other, path), 1.0))
    other.load_prompt(tmp_path / "p")
    assert greedy(other, ASKED) == expected and other.last_prefill.reused_tokens >= len(DOCUMENT)


def test_a_cache_keeps_them_apart(make, path):
    llm, fresh = make(**PRUNED), make(**PRUNED)
    llm.set_cache(llama_cpp.LlamaRAMCache())
    first = llm.create_completion(ASKED, max_tokens=4, temperature=0.0)["choices"][0]["text"]
    for one in (llm, fresh):
        set_adapters(one, (load(one, path), 1.0))
    again, expected = (one.create_completion(ASKED, max_tokens=4, temperature=0.0)["choices"] for one in (llm, fresh))
    assert again == expected and llm.last_prefill.reused_tokens == 0
    set_adapters(llm)
    assert llm.create_completion(ASKED, max_tokens=4, temperature=0.0)["choices"][0]["text"] == first


def test_tokens_evaluated_by_hand_under_several(make, path):
    """As adapters that are switched on in the midst of a text: decoded as stock does, but no state to keep."""
    llm, other = make(**PRUNED), make()
    for one in (llm, other):
        one.eval(ASKED[:40])
        set_adapters(one, (load(one, path), 1.0))
        one.eval(ASKED[40:60])
    assert llm.sample(temp=0.0) == other.sample(temp=0.0)
    with pytest.raises(StateError, match="got K/V of others"):
        llm.save_state()


def test_nothing_pruned_is_the_parents_under_each(make, stock, path):
    """Set and removed between turns of one conversation: bit for bit what the parent gives from its first token on."""
    llm, parent, tokens = make(asl_budget=1.0, asl_dequant=False), stock(), list(ASKED)
    calls = [*changes(llm, path), lambda: remove_vectors(llm)]
    others = [*changes(parent, path), lambda: remove_vectors(parent)]
    for change, other in zip(calls, others):
        change()
        other()
        parent.reset()
        answers = [greedy(one, tokens, 5) for one in (llm, parent)]
        assert answers[0] == answers[1] and np.array_equal(logits(llm), logits(parent))
        tokens += answers[0] + QUESTIONS[1][:7]


@pytest.mark.parametrize("dequant", ["auto", "int8", "all"])
def test_packed_weights_and_graphs_know_of_each(tiny_model, path, dequant):
    """Of a quantised model: products while decoding, and graphs that serve again, are those of what is set now."""
    options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "n_batch": 64, "asl_dequant": dequant, **PRUNED}
    model = str(tiny_model("llama", weight_type="Q4_1"))
    with closing(Llama(model, **options)) as llm:
        for i, change in enumerate(changes(llm, path)):
            change()
            found = greedy(llm, ASKED), logits(llm)
            with closing(Llama(model, **options)) as fresh:
                changes(fresh, path)[i]()
                assert found[0] == greedy(fresh, ASKED) and np.array_equal(found[1], logits(fresh))
