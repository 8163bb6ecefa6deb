"""Where a pruned state ends: at n_ctx, however many cells are left."""

from __future__ import annotations

import pytest

from asl_gguf import ContextFullError, Llama, StateError
from spelled import SPELLED_AFTER, spelling


def test_generation_ends_at_n_ctx_with_cells_to_spare(tiny_model):
    llm = Llama(str(tiny_model("llama")), n_ctx=512, n_threads=1, n_threads_batch=1, asl_budget=64, asl_decode_ctx=512)
    answer = list(llm.generate([5 + i % 200 for i in range(480)], temp=0.0))
    assert llm.last_prefill.kept_tokens == 64 and llm.n_cells > 64 + len(answer)
    assert len(answer) == 512 - 480 + 1  # the last one is sampled, not evaluated


@pytest.mark.parametrize("options", [{"asl_budget": 0.4, "asl_min_prompt": 80}, {}], ids=["budget", "no budget"])
def test_an_answer_within_a_character_at_the_end_of_the_context(make, options):
    """The parent's llama_decode fails there."""
    llm = make(n_ctx=256, **options)
    given = {"logits_processor": spelling(b"\xe2"), "logit_bias": None, "temperature": 0.0}
    n_left = 256 - len(SPELLED_AFTER)
    for max_tokens in (2**20, None, n_left):
        found = llm.create_completion(SPELLED_AFTER, max_tokens=max_tokens, **given)
        assert found["choices"][0]["text"] == "" and found["choices"][0]["finish_reason"] == "length"
        assert n_left - 1 <= found["usage"]["completion_tokens"] <= n_left + 1


def test_more_than_n_ctx_without_a_budget(make):
    """llama.cpp's context has a multiple of 256 cells; the parent's arrays have n_ctx."""
    llm = make(n_ctx=31)
    message = f"expected at most 31 more tokens of n_ctx, got {len(SPELLED_AFTER)}; raise n_ctx"
    for call in (lambda: next(llm.generate(SPELLED_AFTER)), lambda: llm.eval(SPELLED_AFTER)):
        with pytest.raises(ContextFullError, match=message):
            call()
    with pytest.raises(StateError, match="expected a model with weights, got one loaded with vocab_only=True"):
        make(vocab_only=True).eval([70])
