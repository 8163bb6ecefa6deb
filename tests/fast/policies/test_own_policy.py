"""A policy of the user's own: one class is all it takes, by itself or under a name in REGISTRY."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import OptionError
from asl_gguf.policies import REGISTRY, Policy, make_policy
from asl_gguf.policies.contract import Decision, LayerScores, Prompt
from harness import Options, prompt
from prefills import FirstTokens
from tiny_llama import cells, greedy

N_TOKENS = 300
N_KEPT = 60
N_LAYER = 6


@dataclass(frozen=True)
class LongestKeys(Policy):
    """Per KV head, the rows with the longest keys; halfway, the tokens with the longest keys of all heads."""

    name: ClassVar[str] = "longest-keys"

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        return True

    def start(self, prompt: Prompt):
        def observe(scores: LayerScores) -> Decision:
            lengths = np.linalg.norm(scores.keys, axis=-1).T
            lengths[:, -scores.window :] = np.inf
            rows = np.sort(np.argsort(-lengths, axis=-1, kind="stable")[:, : prompt.n_kept], axis=-1)
            tokens = np.sort(np.argsort(-lengths.sum(axis=0), kind="stable")[: prompt.n_kept])
            return Decision(rows, tokens if scores.layer == prompt.n_layer // 2 else None, keep_asking=True)

        return observe


OWN = [FirstTokens(window=8), LongestKeys(window=8)]


@pytest.fixture
def registered(monkeypatch):
    for policy in OWN:
        monkeypatch.setitem(REGISTRY, policy.name, type(policy))


def test_its_choice():
    policy = make_policy(FirstTokens(window=2))
    decision = policy.start(Prompt(9, 5, 4))(LayerScores(0, np.empty((0, 9), dtype=np.float32), 2))
    assert decision.rows.tolist() == decision.tokens.tolist() == [0, 1, 2, 7, 8]
    with pytest.raises(OptionError, match="window: expected an integer of at least 1, got 0"):
        FirstTokens(window=0)


@pytest.mark.parametrize("policy", OWN, ids=lambda policy: policy.name)
def test_through_the_engine(load_tiny, registered, policy):
    """Under its name as well as an object with parameters."""
    with load_tiny("llama").context(Options()) as context:
        session = context.session()
        for chosen in (policy, make_policy(policy.name)):
            report = prefill(session, prompt(N_TOKENS), chosen, N_KEPT)
            assert report.policy == policy.name and report.pruned
            assert report.rows_by_layer == (N_KEPT,) * N_LAYER and len(report.selected) == N_KEPT
            assert report.selection_layer == (0 if policy.name == "first-tokens" else N_LAYER // 2)
            n_scored = 0 if policy.name == "first-tokens" else N_LAYER
            assert len(report.attention_mass_by_layer) == n_scored
            assert context.session().info().n_cells_used == N_KEPT
            context.greedy(3)


@pytest.mark.parametrize("name", [policy.name for policy in OWN])
def test_by_name_through_llama(make, registered, name):
    llm = make(asl_budget=N_KEPT, asl_policy=name)
    answer = greedy(llm, prompt(N_TOKENS))
    assert llm.last_prefill.policy == name and llm.last_prefill.pruned
    held = cells(llm).positions
    assert len(held) == N_KEPT + len(answer) - 1
    if name == "first-tokens":
        assert held[:N_KEPT] == [*range(N_KEPT - 32), *range(N_TOKENS - 32, N_TOKENS)]
    assert greedy(make(asl_budget=N_KEPT, asl_policy=REGISTRY[name]()), prompt(N_TOKENS)) == answer


def test_a_name_that_is_gone():
    with pytest.raises(OptionError, match="policy: expected one of asl-span, .* got 'first-tokens'"):
        make_policy("first-tokens")


@dataclass(frozen=True)
class Answering(Policy):
    """Answers in layer 2 what it is told to."""

    name: ClassVar[str] = "answering"
    answer: object = None

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return True

    def start(self, prompt: Prompt):
        kept = np.arange(prompt.n_tokens - prompt.n_kept, prompt.n_tokens, dtype=np.int32)
        return lambda scores: self.answer if scores.layer == 2 else Decision(kept)


ROWS = np.arange(N_KEPT, dtype=np.int32)
WRONG = {
    "beyond the prompt": Decision(ROWS + N_TOKENS),
    "one beyond": Decision(np.append(ROWS, N_TOKENS)),
    "negative": Decision(ROWS - 1),
    "backwards": Decision(ROWS[::-1].copy()),
    "twice": Decision(np.sort(np.append(ROWS, 3))),
    "floats": Decision(ROWS.astype(np.float32)),
    "a mask": Decision(np.arange(N_TOKENS) < N_KEPT),
    "none at all": Decision(ROWS[:0]),
    "three dimensions": Decision(ROWS[None, None]),
    "another number of heads": Decision(np.tile(ROWS, (3, 1))),
    "a list": Decision([[0, 1], [0]]),
    "a text": Decision("all"),
    "tokens by head": Decision(ROWS, np.tile(ROWS, (2, 1))),
    "tokens beyond": Decision(ROWS, ROWS + N_TOKENS),
    "nothing": None,
    "rows alone": ROWS,
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_a_typed_error(load_tiny, answer):
    """That names the policy and the layer; the next prompt runs."""
    with load_tiny("llama").context(Options(n_ctx=512)) as context:
        session = context.session()
        with pytest.raises(
            OptionError, match=r"policy answering, layer 2: expected|rows: expected shape \[k\] or \[2, k\]"
        ):
            prefill(session, prompt(N_TOKENS), Answering(window=8, answer=answer), N_KEPT)
        assert prefill(session, prompt(N_TOKENS), FirstTokens(window=8), N_KEPT).pruned
