"""n_ctx as llama.cpp takes it: rounded up to 256s, for prompts as for answers."""

from __future__ import annotations

import pytest

from asl_gguf import PromptError, PruningDisabledWarning
from harness import prompt
from tiny_llama import complete

WHOLE = {"asl_budget": 1.0, "asl_dequant": False}


@pytest.mark.parametrize("n_ctx", [1, 255, 256, 257, 300, 1000])
def test_it_is_rounded_as_in_stock(make, stock, n_ctx):
    llm = make(n_ctx=n_ctx, asl_budget=0.2, asl_room=16)
    assert llm.n_ctx() == llm.context_params.n_ctx == stock(n_ctx=n_ctx).n_ctx()
    assert llm.n_cells <= llm.n_ctx()


def test_prompts_between_the_number_given_and_the_rounded_one(make, stock):
    """Stock says that it has room for 512 tokens, but its token buffer has 300: a prompt of 400 fails there."""
    llm, theirs = make(n_ctx=300, **WHOLE), stock(n_ctx=512)
    for n_tokens in (299, 300, 301, 400, 511):
        assert complete(llm, prompt(n_tokens), 4)["choices"] == complete(theirs, prompt(n_tokens), 4)["choices"]
    with pytest.raises(ValueError, match="could not broadcast"):
        complete(stock(n_ctx=300), prompt(400), 4)
    with pytest.raises(PromptError, match="expected fewer than n_ctx = 512 tokens, got a prompt of 512"):
        complete(llm, prompt(512), 1)


def test_answers_end_where_the_parents_do(make, stock):
    llm, theirs = make(n_ctx=300, **WHOLE), stock(n_ctx=512)
    found, expected = (complete(target, prompt(290), 1000) for target in (llm, theirs))
    assert found["usage"] == expected["usage"] and found["choices"] == expected["choices"]


def test_a_model_that_cannot_be_pruned(make, stock):
    with pytest.warns(PruningDisabledWarning):
        llm = make(n_ctx=300, asl_budget=0.2, architecture="mamba")
    assert llm.n_ctx() == stock(n_ctx=300, architecture="mamba").n_ctx()
    assert complete(llm, prompt(400), 1)["usage"]["prompt_tokens"] == 400
