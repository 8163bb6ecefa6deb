"""Calls of a `Llama` from within a callback that it runs: an error at once, and nothing is broken afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from asl_gguf import StateError
from asl_gguf.policies import SnapKV
from harness import llama_cpp
from llama_calls import ASKED, CALLS, OF_THE_MODEL
from tiny_llama import complete, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
SHORT = ASKED[:96]
"""as long as it must be to be pruned: it runs again after every call"""
ENTERING = {name: call for name, call in CALLS.items() if name != "create_chat_completion_openai_v1"} | {
    "close": lambda llm, folder: llm.close()
}


@dataclass(frozen=True)
class Calling(SnapKV):
    """Calls somebody when it starts, when it observes, or when it is asked something."""

    when: str = "start"
    call: ClassVar[Any] = None

    def start(self, prompt: Any) -> Any:
        if self.when == "start":
            Calling.call()
        observe = super().start(prompt)

        def decide(scores: Any) -> Any:
            if self.when == "observe":
                Calling.call()
            return observe(scores)

        return decide

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        if self.when == "asked":
            Calling.call()
        return super().needs_scores(layer, n_layer)


def processors(call: Any) -> Any:
    return llama_cpp.LogitsProcessorList([lambda ids, scores: (call(), scores)[1]])


def criteria(call: Any) -> Any:
    return llama_cpp.StoppingCriteriaList([lambda ids, logits: bool(call()) and False])


@pytest.mark.long
@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
@pytest.mark.parametrize(
    "within, given",
    [
        ("logits processor", lambda call: {"logits_processor": processors(call), "logit_bias": None}),
        ("logits processor", lambda call: {"logits_processor": processors(call)}),
        ("stopping criterion", lambda call: {"stopping_criteria": criteria(call)}),
        ("stopping criterion", lambda call: {"stopping_criteria": list(criteria(call))}),
        ("stopping criterion", lambda call: {"stopping_criteria": criteria(call)[0]}),
    ],
)
def test_within_an_answer(make, tmp_path, options, within, given):
    llm, expected = make(**options), greedy(make(**options), SHORT)
    for name, call in ENTERING.items():
        for stream in (False, True):
            with pytest.raises(
                StateError, match=f"expected the {within} to return, got a call of the Llama that runs it"
            ):
                parts = complete(llm, SHORT, 4, stream=stream, **given(lambda call=call: call(llm, tmp_path)))
                list(parts if stream else [])
        assert greedy(llm, SHORT) == expected, name
    asked = []
    complete(llm, SHORT, 2, **given(lambda: asked.append([call(llm, tmp_path) for call in OF_THE_MODEL.values()])))
    assert asked


@pytest.mark.parametrize(
    "within, make_arguments", [("logits processor", lambda call: {"logits_processor": processors(call)})]
)
def test_within_a_sample(make, tmp_path, within, make_arguments):
    llm = make(**PRUNED)
    llm.eval(ASKED[:20])
    for call in ENTERING.values():
        with pytest.raises(StateError, match=f"expected the {within} to return"):
            llm.sample(**make_arguments(lambda call=call: call(llm, tmp_path)))
    assert llm.sample(temp=0.0) == greedy(make(**PRUNED), ASKED[:20], 1)[0]


@pytest.mark.parametrize("when", ["start", "observe", "asked"])
def test_within_a_policy(make, tmp_path, when):
    llm, expected = make(**PRUNED, asl_policy=Calling(when=when)), greedy(make(**PRUNED, asl_policy=SnapKV()), SHORT)
    for name, call in ENTERING.items():
        Calling.call = lambda call=call: call(llm, tmp_path)
        with pytest.raises(StateError, match="expected the policy to return, got a call of the Llama that runs it"):
            llm.prefill(SHORT)
        Calling.call = lambda: None
        assert greedy(llm, SHORT) == expected, name
        llm.reset()


def test_what_fails_in_a_callback_leaves_no_guard(make):
    """Between two tokens everybody may call again, though the callback has raised."""
    llm = make(**PRUNED)

    def wrong(*_: Any) -> Any:
        raise ValueError("mine")

    for given in ({"logits_processor": llama_cpp.LogitsProcessorList([wrong]), "logit_bias": None},
                  {"stopping_criteria": llama_cpp.StoppingCriteriaList([wrong])}):  # fmt: skip
        with pytest.raises(ValueError, match="mine"):
            complete(llm, ASKED, 4, **given)
        llm.reset()
    assert greedy(llm, ASKED) == greedy(make(**PRUNED), ASKED)
