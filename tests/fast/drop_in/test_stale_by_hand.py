"""Attributes and files changed behind a `Llama` that has pruned: no answer, and no saved state, comes from what was there before."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from asl_gguf import Llama, StateError
from asl_gguf.cache.fingerprint import describe
from asl_gguf.policies import Policy, PyramidInfer
from harness import llama_cpp, prompt
from tiny_llama import DOCUMENT, QUESTIONS, SETTLES, complete, greedy, logits

ASKED = DOCUMENT + QUESTIONS[0]
MORE = QUESTIONS[2]
OTHER = prompt(len(ASKED), seed=77)
"""as long as ASKED, and another from its first tokens on"""


@pytest.fixture(params=["asl", "uneven"], name="options")
def make_options(request) -> dict[str, Any]:
    policy = SETTLES if request.param == "asl" else PyramidInfer(min_context=12)
    return {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": policy, "asl_decode_ctx": 512}


def asked_and_more(make: Any, options: dict[str, Any], n_more: int = len(MORE)) -> Any:
    """A pruned prompt, and tokens after it that were evaluated as they are."""
    llm = make(**options)
    llm.prefill(ASKED)
    llm.eval(MORE[:n_more])
    return llm


@pytest.mark.parametrize("way", ["asked", "no tokens evaluated", "state", "prompt file"])
def test_logits_do_not_outlive_their_token(make, options, tmp_path, way):
    """n_tokens is set to less: the logits that llama.cpp still has follow a token that was given up."""
    llm, fresh = asked_and_more(make, options), make(**options)
    stale = int(logits(llm).argmax())
    llm.n_tokens -= 20
    tokens = list(llm.eval_tokens)
    assert tokens == ASKED + MORE[:20]
    if way == "no tokens evaluated":
        llm.eval([])
    elif way in ("state", "prompt file"):
        state = llm.save_state()
        llm.save_prompt(tmp_path / "prompt")
        llm = make(**options)
        llm.load_state(state) if way == "state" else llm.load_prompt(tmp_path / "prompt")
    answer = greedy(llm, tokens, 4)
    assert answer == greedy(fresh, tokens, 4)
    assert np.array_equal(logits(llm), logits(fresh))
    assert stale != answer[0], "the test shows nothing"


def test_a_prompt_goes_on_from_fewer_tokens(make, options):
    """Where n_tokens is set to less, but not into the pruned prompt, the rest is evaluated anew, and nothing else."""
    llm, honest = asked_and_more(make, options), asked_and_more(make, options, 20)
    llm.n_tokens -= 20
    tokens = ASKED + MORE[:20] + QUESTIONS[1]
    assert greedy(llm, tokens, 4) == greedy(honest, tokens, 4)
    assert np.array_equal(logits(llm), logits(honest))
    assert llm.last_prefill.reused_tokens == honest.last_prefill.reused_tokens == len(ASKED) + 20


@pytest.mark.parametrize("saved", [False, True])
def test_input_ids_do_not_say_what_was_evaluated(make, options, saved):
    llm, fresh = make(**options), make(**options)
    llm.prefill(ASKED)
    llm.input_ids[: len(OTHER)] = OTHER
    if saved:
        state = llm.save_state()
        llm = make(**options)
        llm.load_state(state)
    tokens = OTHER + QUESTIONS[1]
    assert greedy(llm, tokens, 4) == greedy(fresh, tokens, 4)
    assert np.array_equal(logits(llm), logits(fresh)) and llm.last_prefill.reused_tokens == 0


def test_the_prompt_itself_still_goes_on(make, options):
    llm, untouched = make(**options), make(**options)
    for target in (llm, untouched):
        target.prefill(ASKED)
    llm.input_ids[: len(OTHER)] = OTHER
    tokens = ASKED + QUESTIONS[1]
    assert greedy(llm, tokens, 4) == greedy(untouched, tokens, 4)
    assert llm.last_prefill.reused_tokens == untouched.last_prefill.reused_tokens == len(ASKED)


def test_states_say_what_made_them(make, tiny_model, options, tmp_path):
    """Not what the object's attributes, or the file under its path, have become since."""
    path = shutil.copy(tiny_model("llama"), tmp_path / "model.gguf")
    llm = Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, **options)
    llm.prefill(ASKED)
    shutil.copy(tiny_model("qwen2"), tmp_path / "new.gguf")
    (tmp_path / "new.gguf").replace(path)
    llm.lora_path, llm.lora_scale, llm.model_path = "adapter.gguf", 0.5, str(tiny_model("qwen2"))
    state = llm.save_state()
    llm.close()
    same, of_the_new_file = make(**options), make(architecture="qwen2", **options)
    same.load_state(state)
    tokens = ASKED + QUESTIONS[1]
    expected = make(**options)
    expected.prefill(ASKED)
    assert greedy(same, tokens) == greedy(expected, tokens) and same.last_prefill.reused_tokens == len(ASKED)
    with pytest.raises(StateError, match="model file"):
        of_the_new_file.load_state(state)


@pytest.mark.parametrize("borrowed", [False, True])
def test_a_cache_that_was_assigned(make, options, borrowed):
    """As one that set_cache was given: states of other settings are not there."""
    llm, other, fresh = (
        make(**options),
        make(**(options | {"asl_budget": 0.5})),
        make(**(options | {"asl_budget": 0.5})),
    )
    llm.cache = llama_cpp.LlamaRAMCache()
    other.cache = llm.cache if borrowed else llm.cache.inner
    text = complete(llm, ASKED)["choices"]
    tokens = ASKED + QUESTIONS[1]
    assert complete(other, tokens)["choices"] == complete(fresh, tokens)["choices"]
    assert other.last_prefill.reused_tokens == 0
    greedy(llm, OTHER, 1)
    assert complete(llm, ASKED)["choices"] == text  # and its own are


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor


@dataclass(frozen=True)
class Weighted(Policy):
    """A policy of the user's own, with values that are no plain numbers."""

    name: ClassVar[str] = "weighted"
    value: Any = field(default=None)

    def start(self, prompt: Any) -> Any:
        raise NotImplementedError


class Bare(Policy):
    """One that declares no fields."""

    name: ClassVar[str] = "bare"

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    def start(self, prompt: Any) -> Any:
        raise NotImplementedError


def double(value: float) -> float:
    return 2 * value


def halve(value: float) -> float:
    return value / 2


VALUES: list[tuple[Any, Any]] = [
    (1, 2),
    (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    ({"a": 1}, {"a": 2}),
    ({1, 2}, {1, 3}),
    (Scale(1.0), Scale(2.0)),
    ([Scale(1.0)], [Scale(2.0)]),
    (double, halve),
    (Scale, Policy),
]


@pytest.mark.parametrize("make", [lambda value: Weighted(value=value), Bare], ids=["dataclass", "bare"])
@pytest.mark.parametrize("one, other", VALUES, ids=[str(i) for i in range(len(VALUES))])
def test_policies_of_ones_own_are_told_apart(make, one, other):
    assert describe(make(one)) == describe(make(one)) != describe(make(other))
    assert "0x" not in describe(make(one))


def test_objects_that_hold_themselves_end():
    scale: Any = Scale(1.0)
    scale.owner = {"scale": [scale]}
    assert describe(scale).startswith("Scale(factor=1.0, owner={")


def test_a_cache_shared_by_policies_of_one_class(make):
    """Equal but for an attribute that is no dataclass field: each finds its own states alone."""

    class Halved(SETTLES.__class__):
        """SETTLES with an attribute more"""

    policies = [Halved(min_layer=3, obs_layers=2, tau=2) for _ in range(2)]
    for number, policy in enumerate(policies):
        object.__setattr__(policy, "number", number)
    cache = llama_cpp.LlamaRAMCache()
    one, other = (make(asl_budget=0.4, asl_min_prompt=80, asl_policy=policy) for policy in policies)
    for llm in (one, other):
        llm.set_cache(cache)
    answer = complete(one, ASKED)
    assert answer["choices"]
    tokens = [*one.eval_tokens, one._text.sampled, *QUESTIONS[1]]
    complete(other, tokens)
    assert other.last_prefill.reused_tokens == 0
    greedy(one, OTHER, 1)
    complete(one, tokens)
    assert one.last_prefill.reused_tokens > 0


@pytest.mark.parametrize("way", ["state", "prompt file"])
def test_part_of_a_pruned_prompt_is_not_saved(make, options, tmp_path, way):
    """n_tokens is set into the pruned prompt: what is there of it serves nothing, and setting it back loses nothing."""
    llm, untouched = make(**options), make(**options)
    for target in (llm, untouched):
        target.prefill(ASKED)
    llm.n_tokens = 100
    with pytest.raises(StateError, match="expected to go on from all 190 tokens .*, got n_tokens = 100; call reset"):
        llm.save_state() if way == "state" else llm.save_prompt(tmp_path / "prompt")
    llm.n_tokens = len(ASKED)
    tokens = ASKED + QUESTIONS[1]
    assert greedy(llm, tokens, 4) == greedy(untouched, tokens, 4)
    assert llm.last_prefill.reused_tokens == len(ASKED)


def test_part_of_a_pruned_prompt_is_not_loaded(make, options):
    """A state that says of itself that it lacks tokens of the prompt that was pruned."""
    llm, target, fresh = make(**options), make(**options), make(**options)
    llm.prefill(ASKED)
    state = llm.save_state()
    state.held = replace(state.held, tokens=state.held.tokens[:100])
    answer = greedy(target, OTHER)
    with pytest.raises(StateError, match="made, got another: expected 0 to 100 pruned tokens, got 190; prefill"):
        target.load_state(state)
    greedy(target, OTHER + answer + QUESTIONS[1], 1)
    assert target.last_prefill.reused_tokens == len(OTHER) + len(answer) - 1  # as it was
    tokens = ASKED[:100] + QUESTIONS[1]
    assert greedy(target, tokens, 4) == greedy(fresh, tokens, 4)
