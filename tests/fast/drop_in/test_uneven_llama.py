"""`Llama` under policies whose layers keep different numbers of rows: states, turns and prompts that follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asl_gguf.policies import FastKV, PyramidInfer
from harness import prompt
from tiny_llama import cells, greedy, logits

N_TOKENS = 200
DOCUMENT = prompt(N_TOKENS)
TURN = prompt(40, seed=1)
POLICIES = {
    "fastkv": FastKV(window=8, tsp_layer=2, cache_k="all"),
    "fastkv-120": FastKV(window=8, tsp_layer=2, cache_k=120),
    "pyramidinfer": PyramidInfer(min_context=12),
}


@pytest.fixture(params=POLICIES)
def options(request) -> dict[str, Any]:
    return {"asl_budget": 80, "asl_policy": POLICIES[request.param]}


def test_report_and_cells(make, options):
    llm = make(asl_room=64, **options)
    answer = greedy(llm, DOCUMENT)
    report = llm.last_prefill
    rows = report.rows_by_layer
    assert len(set(rows)) > 1 and report.kept_tokens == rows[0] and report.budget_tokens == 80 and report.pruned
    assert len(cells(llm).positions) == rows[0] + len(answer) - 1
    assert report.kv_bytes_prompt < report.kv_bytes_prompt_full
    assert greedy(make(asl_room=64, **options), DOCUMENT) == answer


def test_cells_hold_the_largest_layer(make):
    """The decode context has room for what a layer may keep of n_ctx tokens, and for the answer."""
    sizes = {name: make(asl_budget=80, asl_room=64, asl_policy=policy).n_cells for name, policy in POLICIES.items()}
    assert sizes == {"fastkv": 1024, "fastkv-120": 256, "pyramidinfer": 1024}


def test_state_round_trip(make, options):
    """The state takes the layers' first cells along: into the same object after another prompt, and into a new one."""
    llm, other = make(**options), make(**options)
    document = DOCUMENT + greedy(llm, DOCUMENT)
    state = llm.save_state()
    expected = greedy(llm, document + TURN)
    after = logits(llm)
    greedy(llm, prompt(300, seed=9))
    for target in (llm, other):
        target.load_state(state)
        assert greedy(target, document + TURN) == expected
        assert np.array_equal(logits(target), after)
        assert target.last_prefill.reused_tokens == len(document) - 1


def test_a_turn_continues_the_uneven_cache(make, options):
    """Its answer is that of llama.cpp decoding the turn on the pruned cells."""
    llm, other = make(**options), make(**options)
    first = greedy(llm, DOCUMENT)
    assert greedy(other, DOCUMENT) == first
    answer = greedy(llm, [*DOCUMENT, *first, *TURN])
    assert llm.last_prefill.reused_tokens == N_TOKENS + len(first) - 1
    other.eval([first[-1], *TURN])
    by_hand = [int(logits(other).argmax())]
    while len(by_hand) < len(answer):
        other.eval(by_hand[-1:])
        by_hand.append(int(logits(other).argmax()))
    assert answer == by_hand and np.array_equal(logits(llm), logits(other))


def test_another_pruned_prompt(make, options):
    llm, tokens = make(**options), prompt(300, seed=2)
    greedy(llm, DOCUMENT)
    assert greedy(llm, tokens) == greedy(make(**options), tokens)
    assert llm.last_prefill.reused_tokens == 0


def test_a_short_prompt_is_stock(make, stock, options):
    """One that the parent evaluates, after an uneven one."""
    llm = make(**options)
    greedy(llm, DOCUMENT)
    assert greedy(llm, prompt(60)) == greedy(stock(), prompt(60))


def test_eval_after_reset_is_stock(make, stock, options):
    llm, theirs = make(**options), stock()
    greedy(llm, DOCUMENT)
    for target in (llm, theirs):
        target.reset()
        target.eval(prompt(30))
    assert np.array_equal(logits(llm), logits(theirs))
