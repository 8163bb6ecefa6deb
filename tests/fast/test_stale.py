"""Every way the API has to leave K/V of one question behind: the next question never gets them."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_llama import EOS, SETTLES, Make, complete, greedy, make_llama  # noqa: F401
from test_llama_reuse import DOCUMENT, QUESTIONS

from asl_gguf import PrefillCancelled, PromptError, StateError
from harness import llama_cpp, prompt

ASKED = DOCUMENT + QUESTIONS[0]
PROBES = {
    "another question": DOCUMENT + QUESTIONS[1],
    "half the question": ASKED[:-20],
    "half the document": DOCUMENT[:90] + QUESTIONS[2],
}


@pytest.fixture(name="options")
def make_options() -> dict[str, Any]:
    return {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": SETTLES}


class Left:
    """What the ways below leave behind in `llm`, which has answered ASKED."""

    def __init__(self, make: Make, options: dict[str, Any], folder: Path) -> None:
        self.make, self.options, self.folder = make, options, folder
        self.cancelled = False
        self.llm = make(asl_progress=lambda *_: not self.cancelled, **options)
        self.llm.asked = greedy(self.llm, ASKED)

    def fewer_tokens_by_hand(self) -> None:
        self.llm.n_tokens = 100

    def no_tokens_by_hand(self) -> None:
        self.llm.n_tokens = 0

    def appended_without_reset(self) -> None:
        list(islice(self.llm.generate(QUESTIONS[1], reset=False, temp=0.0), 3))

    def appended_after_fewer_by_hand(self) -> None:
        self.llm.n_tokens = 100
        with pytest.raises(StateError, match="expected to go on from all 190 tokens"):
            next(self.llm.generate(QUESTIONS[1], reset=False))

    def evaluated_more(self) -> None:
        self.llm.eval(QUESTIONS[2])

    def evaluated_after_fewer_by_hand(self) -> None:
        self.llm.n_tokens = 100
        with pytest.raises(StateError, match="expected to go on from all 190 tokens"):
            self.llm.eval(QUESTIONS[2])

    def prefilled_ahead(self) -> None:
        self.llm.prefill(DOCUMENT + QUESTIONS[2])

    def state_of_another_question(self) -> None:
        other = self.make(**self.options)
        greedy(other, DOCUMENT + QUESTIONS[2])
        self.llm.load_state(other.save_state())

    def state_of_a_shorter_prompt(self) -> None:
        other = self.make(**self.options)
        greedy(other, DOCUMENT[:110], 1)
        self.llm.load_state(other.save_state())

    def state_refused(self) -> None:
        with pytest.raises(StateError):
            self.llm.load_state(self.make().save_state())

    def prompt_file(self) -> None:
        other = self.make(**self.options)
        other.prefill(DOCUMENT + QUESTIONS[2])
        other.save_prompt(self.folder / "prompt")
        self.llm.load_prompt(self.folder / "prompt")

    def cache_full_of_questions(self) -> None:
        self.llm.set_cache(llama_cpp.LlamaRAMCache())
        for tokens in (ASKED, DOCUMENT[:100], DOCUMENT + QUESTIONS[2]):
            complete(self.llm, tokens)

    def cache_of_another_object(self) -> None:
        cache = llama_cpp.LlamaRAMCache()
        other = self.make(**(self.options | {"asl_budget": 0.5}))
        for llm in (other, self.llm):
            llm.set_cache(cache)
        for tokens in (ASKED, DOCUMENT, DOCUMENT + QUESTIONS[1]):
            complete(other, tokens)

    def abandoned_stream(self) -> None:
        stream = complete(self.llm, DOCUMENT + QUESTIONS[2], 20, stream=True)
        next(stream)
        stream.close()

    def closed_before_its_first_token(self) -> None:
        answer = self.llm.generate(DOCUMENT + QUESTIONS[2])
        answer.close()

    def stopped_before_its_first_token(self) -> None:
        list(self.llm.generate(DOCUMENT + QUESTIONS[2], stopping_criteria=lambda *_: True))

    def failing_stopping_criteria(self) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            next(self.llm.generate(DOCUMENT + QUESTIONS[2], stopping_criteria=fail))

    def cancelled_prefill(self) -> None:
        self.cancelled = True
        with pytest.raises(PrefillCancelled):
            greedy(self.llm, DOCUMENT + QUESTIONS[2])
        self.cancelled = False

    def refused_prompt(self) -> None:
        with pytest.raises(PromptError):
            greedy(self.llm, prompt(1024))

    def short_prompt(self) -> None:
        greedy(self.llm, DOCUMENT[:70])

    def answer_that_ended(self) -> None:
        complete(self.llm, DOCUMENT + QUESTIONS[2], logit_bias={EOS: 100.0})

    def copied(self) -> None:
        self.llm = copy.copy(self.llm)


WAYS = [name for name in vars(Left) if not name.startswith("_")]


@pytest.fixture
def expected(make, options) -> dict[str, list[int]]:
    answers = {}
    for name, tokens in PROBES.items():
        fresh = make(**options)
        answers[name] = greedy(fresh, tokens, 4)
        fresh.close()
    return answers


@pytest.mark.parametrize("way", WAYS)
def test_no_question_gets_what_another_one_left(make, options, expected, tmp_path, way):
    for name, tokens in PROBES.items():
        left = Left(make, options, tmp_path)
        getattr(left, way)()
        assert greedy(left.llm, tokens, 4) == expected[name], name
        left.llm.close()


def test_unpruned_tokens_are_shared(make, options):
    """What was evaluated without pruning serves every prompt with its start, as in llama_cpp."""
    llm, whole = make(**options), make(asl_budget=1.0, asl_dequant=False)
    greedy(llm, ASKED)
    llm.reset()
    llm.eval(DOCUMENT[:60])
    tokens = DOCUMENT[:90] + QUESTIONS[2]
    assert greedy(llm, tokens, 4) == greedy(whole, tokens, 4)
    assert llm.last_prefill.reused_tokens == 60


def test_through_completions_too(make, options):
    """`create_completion` with a cache looks for states before `generate` is called."""
    llm = make(**options)
    llm.set_cache(llama_cpp.LlamaRAMCache())
    complete(llm, ASKED)
    for tokens in PROBES.values():
        fresh = make(**options)
        assert complete(llm, tokens)["choices"] == complete(fresh, tokens)["choices"]
        fresh.close()
