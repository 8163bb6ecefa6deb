"""`draft_model`: answers from the full cache, and guarded as other callbacks are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from asl_gguf import OptionError, StateError
from harness import llama_cpp, prompt
from llama_calls import ASKED, CALLS
from tiny_llama import complete, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
ENTERING = {name: call for name, call in CALLS.items() if name != "create_chat_completion_openai_v1"}


class Drafting(LlamaDraftModel):
    """Drafts nothing; calls somebody."""

    call: Any = None

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        if self.call:
            self.call()
        return np.empty(0, np.intc)


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
@pytest.mark.filterwarnings("ignore::asl_gguf.PruningDisabledWarning")
def test_within_a_draft_model(make, tmp_path, options):
    draft = Drafting()
    llm, expected = make(**options, draft_model=draft), greedy(make(), ASKED)
    assert llm.draft_model is draft
    for name, call in ENTERING.items():
        draft.call = lambda call=call: call(llm, tmp_path)
        with pytest.raises(StateError, match="expected the draft model to return, got a call of the Llama"):
            complete(llm, ASKED, 4)
        draft.call = None
        assert greedy(llm, ASKED) == expected, name


@pytest.mark.filterwarnings("ignore::asl_gguf.PruningDisabledWarning")
@pytest.mark.parametrize("budget", [None, 0.2])
def test_a_draft_model_with_a_prompt_of_several_batches(make, budget):
    """The parent has room for the logits of n_batch tokens alone: its ValueError, "could not broadcast"."""
    tokens = prompt(320, seed=1)
    llm = make(asl_budget=budget, n_batch=32, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    assert greedy(llm, tokens) == greedy(make(n_batch=32), tokens)


def test_a_draft_model_is_itself_within_a_callback(make):
    draft = Drafting()
    llm, seen = make(draft_model=draft), []
    seeing = llama_cpp.StoppingCriteriaList([lambda ids, logits: bool(seen.append(llm.draft_model))])
    complete(llm, ASKED, 2, stopping_criteria=seeing)
    assert seen and all(one is draft for one in seen)


@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_a_draft_model_comes_with_the_object(make, options):
    """Later there are no logits to check its tokens by."""
    llm = make(**options)
    with pytest.raises(OptionError, match="draft_model: expected it when the Llama is made"):
        llm.draft_model = Drafting()
    llm.draft_model = None
    assert greedy(llm, ASKED) == greedy(make(**options), ASKED)
