"""The verbose log of a pruned prompt: it was prefilled once, and was in no cache."""

from __future__ import annotations

import pytest

from harness import llama_cpp, prompt
from tiny_llama import greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80, "verbose": True}


def counts(llm) -> tuple[int, int]:
    """Tokens of prompts and of answers that llama.cpp's timings count."""
    found = llama_cpp.llama_perf_context(llm.ctx)
    return found.n_p_eval, found.n_eval


def test_a_prompt_is_counted_once_and_called_what_it_is(make, capfd):
    llm = make(**PRUNED)
    for seed in (0, 1):
        tokens = prompt(300, seed=seed)
        llm._ctx.reset_timings()
        capfd.readouterr()
        greedy(llm, tokens, 5)
        text = capfd.readouterr().err
        assert counts(llm) == (300, 4) and llama_cpp.llama_perf_context(llm.ctx).t_p_eval_ms > 0
        assert text.count("Llama.generate: kept 120 of 300 tokens") == 1
        assert "cached" not in text and "prefix-match" not in text and llm.verbose


def test_what_was_in_the_cache_is_called_so(make, capfd):
    """The parent's line, where the parent is right."""
    llm, tokens = make(**PRUNED), prompt(300)
    answer = greedy(llm, tokens, 5)
    llm._ctx.reset_timings()
    capfd.readouterr()
    greedy(llm, tokens + answer + prompt(20), 2)
    text = capfd.readouterr().err
    assert "304 prefix-match hit, remaining 21 prompt tokens to eval" in text and "Llama.generate: kept" not in text
    assert counts(llm) == (21, 1)


def test_a_turn_counts_its_own_tokens(make, capfd):
    llm, tokens = make(**PRUNED), prompt(300)
    answer = greedy(llm, tokens, 5)
    llm._ctx.reset_timings()
    greedy(llm, tokens + answer + prompt(200, seed=2), 2)
    assert llm.last_prefill.turns[-1][0] == 201 and counts(llm) == (201, 1)


@pytest.mark.parametrize("options", [{}, {"asl_budget": 1.0, "asl_dequant": False}], ids=["no budget", "unpruned"])
def test_without_pruning_it_is_the_parents(make, stock, capfd, options):
    seen = []
    for llm in (make(verbose=True, **options), stock(verbose=True)):
        for tokens in (prompt(100), prompt(100) + prompt(20, seed=1)):
            llm._ctx.reset_timings()
            capfd.readouterr()
            greedy(llm, tokens, 3)
            lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Llama.generate")]
            seen.append((counts(llm), lines))
    assert seen[:2] == seen[2:] and seen[1][1]
