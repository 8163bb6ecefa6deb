"""Every way that the API of `Llama` has to leave K/V of one question behind, for tests of the question after it."""

from __future__ import annotations

import copy
import pickle
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from asl_gguf import PrefillCancelled, PromptError, StateError
from harness import llama_cpp, prompt
from tiny_gguf import EOS
from tiny_llama import Make, complete, forget, greedy

DOCUMENT = prompt(104)
QUESTIONS = [prompt(24, seed=seed) for seed in range(3)]
"""short: some 300 cases run them two to four times each"""
ASKED = DOCUMENT + QUESTIONS[0]
LONGER = ASKED + prompt(90, seed=7)
"""what has been asked before ASKED, in one of the ways"""


class Left:
    """What the ways below leave behind in `llm`, which has answered ASKED and nothing else."""

    def __init__(self, make: Make, options: dict[str, Any], folder: Path) -> None:
        self.make, self.options, self.folder = make, options, folder
        self._asked, self._others = make(**options), {}

    def _ask(self) -> None:
        self.llm = forget(self._asked)
        self.answer = greedy(self.llm, ASKED)

    def _other(self, options: dict[str, Any]) -> Any:
        """Another object that knows no prompt."""
        if (key := str(options)) not in self._others:
            self._others[key] = self.make(**options)
        return forget(self._others[key])

    def fewer_tokens_by_hand(self) -> None:
        self.llm.n_tokens = 100

    def no_tokens_by_hand(self) -> None:
        self.llm.n_tokens = 0

    def more_tokens_by_hand(self) -> None:
        """Beyond those that were evaluated stand the tokens of an earlier, longer prompt."""
        for tokens in (LONGER, ASKED):
            self.llm.prefill(tokens)
        self.llm.n_tokens = len(LONGER)
        with pytest.raises(
            StateError, match=f"expected n_tokens of at most {len(ASKED)}, .*, got {len(LONGER)}; call reset"
        ):
            self.llm.eval(QUESTIONS[2])

    def part_of_the_answer_by_hand(self) -> None:
        self.llm.n_tokens = len(ASKED) + 3

    def no_answer_by_hand(self) -> None:
        self.llm.n_tokens = len(ASKED)
        self.llm.eval(QUESTIONS[2])

    def appended_without_reset(self) -> None:
        list(islice(self.llm.generate(QUESTIONS[1], reset=False, temp=0.0), 3))

    def appended_after_fewer_by_hand(self) -> None:
        self.llm.n_tokens = 100
        with pytest.raises(StateError, match=f"expected to go on from all {len(ASKED)} tokens"):
            next(self.llm.generate(QUESTIONS[1], reset=False))

    def appended_after_none_by_hand(self) -> None:
        self.llm.n_tokens = 0
        list(islice(self.llm.generate(DOCUMENT[:70], reset=False, temp=0.0), 3))

    def evaluated_more(self) -> None:
        self.llm.eval(QUESTIONS[2])

    def evaluated_after_fewer_by_hand(self) -> None:
        self.llm.n_tokens = 100
        with pytest.raises(StateError, match=f"expected to go on from all {len(ASKED)} tokens"):
            self.llm.eval(QUESTIONS[2])

    def prefilled_ahead(self) -> None:
        self.llm.prefill(DOCUMENT + QUESTIONS[2])

    def state_of_another_question(self) -> None:
        other = self._other(self.options)
        greedy(other, DOCUMENT + QUESTIONS[2])
        self.llm.load_state(other.save_state())

    def state_of_a_shorter_prompt(self) -> None:
        other = self._other(self.options)
        greedy(other, DOCUMENT[:90], 1)
        self.llm.load_state(other.save_state())

    def state_of_its_own(self) -> None:
        state = self.llm.save_state()
        greedy(self.llm, DOCUMENT + QUESTIONS[2])
        self.llm.load_state(state)

    def state_changed_by_hand(self) -> None:
        """As if it were another prompt's."""
        self.llm.prefill(DOCUMENT + QUESTIONS[2])
        state = self.llm.save_state()
        assert state.n_tokens == len(ASKED)
        state.input_ids = np.array(ASKED, dtype=np.intc)
        self.llm.load_state(state)

    def state_pickled(self) -> None:
        state = pickle.loads(pickle.dumps(self.llm.save_state()))
        self.llm = self.make(**self.options)
        self.llm.load_state(state)

    def state_refused(self) -> None:
        with pytest.raises(StateError):
            self.llm.load_state(self._other({}).save_state())

    def prompt_file(self) -> None:
        other = self._other(self.options)
        other.prefill(DOCUMENT + QUESTIONS[2])
        other.save_prompt(self.folder / "prompt")
        self.llm.load_prompt(self.folder / "prompt")

    def prompt_file_and_another_question(self) -> None:
        self.prompt_file()
        greedy(self.llm, DOCUMENT[:96] + QUESTIONS[2])

    def prompt_file_refused(self) -> None:
        other = self._other(self.options | {"asl_budget": 0.5})
        other.prefill(DOCUMENT + QUESTIONS[2])
        other.save_prompt(self.folder / "prompt")
        with pytest.raises(StateError):
            self.llm.load_prompt(self.folder / "prompt")

    def _fill_the_cache(self) -> None:
        for tokens in (ASKED, DOCUMENT[:90], DOCUMENT + QUESTIONS[2]):
            complete(self.llm, tokens)

    def cache_full_of_questions(self) -> None:
        self.llm.set_cache(llama_cpp.LlamaRAMCache())
        self._fill_the_cache()

    def cache_on_disk(self) -> None:
        self.llm.set_cache(llama_cpp.LlamaDiskCache(mkdtemp(dir=self.folder)))
        self._fill_the_cache()

    def cache_taken_away(self) -> None:
        self.cache_full_of_questions()
        self.llm.set_cache(None)

    def cache_set_as_an_attribute(self) -> None:
        """Past what `set_cache` does with it."""
        self.llm.cache = llama_cpp.LlamaRAMCache()
        self._fill_the_cache()

    def cache_that_has_one_state_for_all(self) -> None:
        self.llm.set_cache(LastState())
        self._fill_the_cache()

    def cache_of_another_object(self) -> None:
        cache = llama_cpp.LlamaRAMCache()
        other = self._other(self.options | {"asl_budget": 0.5})
        for llm in (other, self.llm):
            llm.set_cache(cache)
        for tokens in (ASKED, DOCUMENT, DOCUMENT + QUESTIONS[1]):
            complete(other, tokens)

    def abandoned_stream(self) -> None:
        stream = complete(self.llm, DOCUMENT + QUESTIONS[2], 20, stream=True)
        next(stream)
        stream.close()

    def stream_read_after_another_prompt(self) -> None:
        stream = self.llm.generate(DOCUMENT + QUESTIONS[2], temp=0.0)
        next(stream)
        greedy(self.llm, LONGER, 2)
        with pytest.raises(
            StateError, match="expected each answer to be read to its end, .*, before the next prompt; got"
        ):
            next(stream)

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

    def failing_logits_processor(self) -> None:
        calls = []

        def fail(_tokens: object, scores: Any) -> Any:
            calls.append(scores)
            if len(calls) == 3:
                raise RuntimeError("no")
            return scores

        answer = self.llm.generate(DOCUMENT + QUESTIONS[2], logits_processor=llama_cpp.LogitsProcessorList([fail]))
        with pytest.raises(RuntimeError, match="no"):
            list(islice(answer, 6))
        assert len(calls) == 3

    def refused_embedding(self) -> None:
        with pytest.raises(RuntimeError, match="embedding=True"):
            self.llm.embed("On day 3")

    def filled_in_the_middle(self) -> None:
        complete(self.llm, DOCUMENT + QUESTIONS[2], suffix=" The end.")

    def cancelled_prefill(self) -> None:
        self.llm.set_progress(lambda *_: False)
        with pytest.raises(PrefillCancelled):
            greedy(self.llm, DOCUMENT + QUESTIONS[2])
        self.llm.set_progress(None)

    def refused_prompt(self) -> None:
        with pytest.raises(PromptError):
            greedy(self.llm, prompt(1024))

    def short_prompt(self) -> None:
        greedy(self.llm, DOCUMENT[:70])

    def answer_that_ended(self) -> None:
        complete(self.llm, DOCUMENT + QUESTIONS[2], logit_bias={EOS: 100.0})

    def copied(self) -> None:
        self.llm = copy.copy(self.llm)

    def deeply_copied(self) -> None:
        self.llm = copy.deepcopy(self.llm)

    def pickled(self) -> None:
        self.llm = pickle.loads(pickle.dumps(self.llm))

    def progress_and_seed(self) -> None:
        self.llm.set_progress(None)
        self.llm.set_seed(7)


class LastState(llama_cpp.llama_cache.BaseLlamaCache):
    """A cache of a user's own that takes what it was given last for what was asked."""

    cache_size = 0
    _last: Any = None

    def _find_longest_prefix_key(self, key: Any) -> Any:
        return key

    def __getitem__(self, key: Any) -> Any:
        if self._last is None:
            raise KeyError(key)
        return self._last

    def __contains__(self, key: Any) -> bool:
        return self._last is not None

    def __setitem__(self, key: Any, value: Any) -> None:
        self._last = value


WAYS = [name for name in vars(Left) if not name.startswith("_")]
