"""`Llama.set_cache`: a cache, llama_cpp's or a user's own, hands out a state only where it serves the prompt."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from asl_gguf.policies import SnapKV
from harness import llama_cpp, prompt
from tiny_gguf import FIRST_BYTE
from tiny_llama import DOCUMENT, EXCLAIM, QUESTIONS, complete, n_kept

OTHER = prompt(200, seed=9)
PLAIN = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": SnapKV()}
"""where the policy does not matter"""


class PlainCache:
    """A user's own, of no class of llama_cpp's: finds the longest common start, like the parent's."""

    def __init__(self) -> None:
        self.states: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def _find(self, key: Any) -> Any:
        shared = {k: llama_cpp.Llama.longest_token_prefix(k, tuple(key)) for k in self.states}
        return max(shared, key=shared.__getitem__) if shared and max(shared.values()) else None

    def __getitem__(self, key: Any) -> Any:
        return self.states[self._find(key)]

    def __contains__(self, key: Any) -> bool:
        return self._find(key) is not None

    def __setitem__(self, key: Any, value: Any) -> None:
        self.states[tuple(key)] = value


@pytest.fixture(params=["ram", "disk", "own"])
def cache(request, tmp_path) -> Any:
    if request.param == "disk":
        return llama_cpp.LlamaDiskCache(str(tmp_path / "cache"))
    return llama_cpp.LlamaRAMCache() if request.param == "ram" else PlainCache()


def test_cache_never_serves_another_question(make, options, cache):
    llm = make(**options)
    llm.set_cache(cache)
    prompts = [DOCUMENT + question for question in QUESTIONS]
    alone = [complete(make(**options), tokens)["choices"] for tokens in prompts]
    for question in [0, 1, 0, 2, 1]:
        tokens = prompts[question]
        assert complete(llm, tokens)["choices"] == alone[question]
        assert llm.last_prefill.kept_tokens == n_kept(len(tokens))


def test_cache_serves_a_conversation_again(make, options, cache):
    """Turns of the first conversation find their states although other prompts ran since, each turn its own."""
    llm, alone = make(**options), make(**options)
    llm.set_cache(cache)
    answer = [FIRST_BYTE + ord("!")] * 8
    first = DOCUMENT + answer
    second = first + QUESTIONS[0] + answer
    for tokens in (DOCUMENT, first + QUESTIONS[0], second + QUESTIONS[1]):
        complete(llm, tokens, logit_bias=EXCLAIM)
    complete(llm, OTHER)
    # another second turn: the state after the first one, not the longer ones with the same start
    complete(alone, DOCUMENT, logit_bias=EXCLAIM)
    for turn in (first + QUESTIONS[2], second + QUESTIONS[2]):
        complete(llm, turn)
        assert llm.last_prefill.reused_tokens == (len(first) if turn[: len(second)] != second else len(second)) - 1
    assert complete(llm, first + QUESTIONS[2])["choices"] == complete(alone, first + QUESTIONS[2])["choices"]


def test_objects_share_a_cache(make, cache):
    """A state is found by objects with the same settings, and by no other."""
    same, other = make(**PLAIN), make(**(PLAIN | {"asl_budget": 0.5}))
    llm = make(**PLAIN)
    for target in (llm, same, other):
        target.set_cache(cache)
    complete(llm, DOCUMENT, logit_bias=EXCLAIM)
    turn = DOCUMENT + [FIRST_BYTE + ord("!")] * 8 + QUESTIONS[0]
    answers = [complete(target, turn)["choices"] for target in (same, other)]
    assert (same.last_prefill.reused_tokens, other.last_prefill.reused_tokens) == (len(DOCUMENT) + 7, 0)
    assert answers[1] == complete(make(**(PLAIN | {"asl_budget": 0.5})), turn)["choices"]


def test_a_disk_cache_is_quiet(make, tmp_path, capfd):
    llm = make(**PLAIN)
    llm.set_cache(llama_cpp.LlamaDiskCache(str(tmp_path / "cache")))
    complete(llm, DOCUMENT)
    assert capfd.readouterr() == ("", "")


def test_unpruned_states_serve_a_common_start(make):
    """As in llama_cpp."""
    llm = make(**PLAIN)
    llm.set_cache(llama_cpp.LlamaRAMCache())
    complete(llm, DOCUMENT[:70])
    complete(llm, OTHER[:60])
    complete(llm, DOCUMENT[:50] + QUESTIONS[0][:20])
    assert llm.last_prefill.reused_tokens == 50


def test_other_kernels_take_no_state(make):
    """K/V of rounded activations are not those of `asl_dequant=False`."""
    shared, options = llama_cpp.LlamaRAMCache(), {"asl_budget": 1.0}
    rounded, exact = make(**options), make(**options, asl_dequant=False)
    for llm in (rounded, exact):
        llm.set_cache(shared)
    complete(rounded, DOCUMENT)
    complete(exact, DOCUMENT + QUESTIONS[0])
    assert exact.last_prefill.reused_tokens == 0


def test_a_state_that_fills_n_ctx(make, cache):
    """An answer that ended at n_ctx: later prompts that begin alike are no errors, and its own state can be loaded."""
    llm, alone = make(n_ctx=256, asl_budget=1.0), make(n_ctx=256, asl_budget=1.0)
    llm.set_cache(cache)
    complete(llm, OTHER, n_tokens=None)
    llm.load_state(llm.save_state())
    llm.eval([FIRST_BYTE])
    llm.load_state(llm.save_state())
    assert llm.n_tokens == 256
    for tokens in (OTHER, OTHER[:100] + QUESTIONS[0]):
        assert complete(llm, tokens)["choices"] == complete(alone, tokens)["choices"]


def test_objects_with_less_room_share_a_cache(make, cache):
    """States of more tokens than n_ctx serve others alone; one of more cells than there are is said to be of no use."""
    same = {**PLAIN, "asl_min_prompt": 400}
    large, small, few = make(**same), make(n_ctx=256, **same), make(**same, asl_decode_ctx=256)
    for target in (large, small, few):
        target.set_cache(cache)
    complete(large, prompt(300))
    asked = [prompt(300)[: 100 + i] + QUESTIONS[i] for i in range(2)]
    expected = [complete(make(**same), tokens)["choices"] for tokens in asked]
    assert complete(small, asked[0])["choices"] == expected[0]
    cache_of_large = "a state in the cache is not used: expected a state of this model that fits 256 KV cells"
    with pytest.warns(RuntimeWarning, match=cache_of_large):
        assert complete(few, asked[1])["choices"] == expected[1]
