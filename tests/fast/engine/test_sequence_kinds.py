"""Conversations on models with recurrent states or shared K/V, many in one context: their states stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asl_gguf.budget.rule import BudgetContext, ShareRule
from asl_gguf.budget.share import Budget
from asl_gguf.engine.place import OwnContext, Place, SharedContext
from asl_gguf.engine.plan import Request
from asl_gguf.engine.sequence import Sequence
from asl_gguf.engine.transcript import Transcript
from asl_gguf.policies import make_policy
from harness import Context, Options, assert_same
from sequences import Sequences
from tiny_kinds import loaded_kind

N_CTX = 512
A, B, C = range(3)
SHARED = Options(n_ctx=4 * N_CTX, n_batch=64, n_ubatch=32, n_seq_max=4)
KINDS = ("delta-net", "mamba2-beside", "short-conv", "kda", "shared-kv", "streams")
POLICY = make_policy("snapkv:window=16")


def prompt(n_tokens: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(3, 128, n_tokens).tolist()


OTHERS = {A: prompt(70, 11), C: prompt(41, 12)}
FIRST, TURN = prompt(200, 1), prompt(120, 2)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    with loaded_kind(tmp_path_factory.mktemp("kinds"), kind) as loaded:
        yield loaded


def make_sequence(place: Place) -> Sequence:
    rule = ShareRule(Budget(0.3, min_prompt=32), BudgetContext("", N_CTX, POLICY, room=0))
    return Sequence(place, rule, Transcript(N_CTX))


def in_shared(context: Context, seq_id: int) -> Sequence:
    return make_sequence(SharedContext(context.handle, seq_id, context.params, N_CTX))


def fill(context: Context) -> Sequences:
    live = Sequences(context)
    for seq, tokens in OTHERS.items():
        live.decode(seq, tokens)
    return live


def talk(sequence: Sequence, decode: Any, between: Any = lambda: None) -> list[np.ndarray]:
    """A prompt, five tokens of its answer and a pruned turn; logits along the way."""
    logits, answer = [], prompt(5, 3)
    for tokens in (FIRST, [*FIRST, *answer, *TURN]):
        plan = sequence.plan(Request(tokens))
        assert plan.action == ("prefill" if tokens is FIRST else "turn")
        sequence.start(plan)
        while sequence.step():
            between()
        logits.append(decode([answer[0]]))
        if tokens is FIRST:
            logits += [decode([token]) for token in answer[1:]]
            sequence.transcript.append(answer)
    assert sequence.report.turns == ((200, 60), (120, 36))
    return logits


@pytest.mark.long
def test_turns_are_those_of_a_context_of_its_own(model, kind):
    """And A and C, who decode between the slices, are what they are where nothing is prefilled."""
    own_options = Options(n_ctx=N_CTX, n_batch=64, n_ubatch=32)
    with model.context(own_options) as own, model.context(SHARED) as shared, model.context(SHARED) as beside:
        expected = talk(make_sequence(OwnContext(own.handle, own.session(N_CTX))), own.decode)
        live, alone = fill(shared), fill(beside)
        said: list[list[np.ndarray]] = [[], []]

        def between() -> None:
            if len(said[0]) < 40:
                for found, sequences in zip(said, (live, alone), strict=True):
                    found += [sequences.decode(seq, [70 + len(found) % 9]) for seq in OTHERS]

        found = talk(in_shared(shared, B), lambda tokens: live.decode(B, tokens), between)
        assert_same(*said, "A and C")
        if kind in ("short-conv", "shared-kv", "streams"):  # sums follow the cells of sliding layers
            np.testing.assert_allclose(found, expected, atol=1e-3)
        else:
            assert_same(found, expected, "B")


@pytest.mark.parametrize("unified", [False, True], ids=["streams", "unified"])
def test_a_cancelled_turn_keeps_the_past_and_its_state(model, unified):
    options = Options(n_ctx=4 * N_CTX, n_batch=64, n_ubatch=32, n_seq_max=4, unified=unified)
    with model.context(options) as shared:
        live, sequence = fill(shared), in_shared(shared, B)
        sequence.run(sequence.plan(Request(FIRST)))
        before = {seq: live.state(seq) for seq in (A, B, C)}
        for n_slices in (1, 5, 8):
            sequence.start(sequence.plan(Request([*FIRST, *TURN])))
            for _ in range(n_slices):
                assert sequence.step()
            sequence.cancel()
            assert {seq: live.state(seq) for seq in (A, B, C)} == before
        sequence.run(sequence.plan(Request([*FIRST, *TURN])))
        assert sequence.report.turns == ((200, 60), (120, 36))
        assert {seq: live.state(seq) for seq in (A, C)} == {seq: before[seq] for seq in (A, C)}
