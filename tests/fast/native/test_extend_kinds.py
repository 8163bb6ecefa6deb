"""Turns of models whose layers hold recurrent states or attend to K/V of others (Session.extend): states go on, too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.turn import TurnLayers
from asl_gguf.errors import NativeError, PrefillCancelled
from asl_gguf.native.session import Session
from asl_gguf.policies import make_policy
from harness import Context, Options, assert_same, llama_cpp
from pairs import pairs
from sequences import Sequences
from tiny_kinds import loaded_kind

OPTIONS = Options(n_ctx=512, n_batch=48, n_ubatch=32)
N_TOKENS, N_KEPT, N_TURN, WINDOW = 100, 40, 90, 8
ANSWER = [70, 71, 72]
STATES = ("delta-net", "lightning", "mamba", "mamba2", "mamba2-beside", "mamba-renamed", "kda", "short-conv")
SHARED = ("shared-kv", "streams")
SLIDING = ("short-conv", *SHARED)
ROWS_ONLY = ("lightning",)


def prompt(seed: int = 0, n_tokens: int = N_TOKENS) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(3, 128, n_tokens).tolist()


TURN = prompt(1, N_TURN)


@pytest.fixture(scope="module", params=(*STATES, *SHARED))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    with loaded_kind(tmp_path_factory.mktemp("kinds"), kind) as loaded:
        yield loaded


def give_past(context: Context, pruned: bool = True) -> Session:
    """A prompt and two tokens of its answer."""
    session = context.session(1024)
    policy = make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}" if pruned else "none")
    report = prefill(session, prompt(), policy, N_KEPT if pruned else N_TOKENS)
    assert report.pruned is pruned
    context.decode([80])
    context.decode([81])
    return session


def prune_turn(session: Session, sliced: bool = False) -> None:
    """As the engine does, from the first layer that is asked about on."""
    policy = make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}")
    report = prefill(TurnLayers(session), TURN, policy, N_KEPT)
    assert report.pruned and report.kept_tokens == N_KEPT


@pairs(pruned=[False, True], flash=[False, True], n_turn=[1, 33, N_TURN])
def test_nothing_dropped_is_stock(model, kind, pruned, flash, n_turn):
    """Bit for bit what llama_decode of the turn gives in that context, pruned or not: same cells, same sums, same states."""
    options = replace(OPTIONS, flash=flash)
    with model.context(options) as context, model.context(options) as stock:
        session = give_past(context, pruned)
        give_past(stock, pruned)
        stock.decode(TURN[:n_turn])
        session.extend(TURN[:n_turn], WINDOW)
        assert session.info().n_past == (N_KEPT if pruned else N_TOKENS) + 2
        session.finish()
        if kind in SLIDING and pruned:
            # cells of sliding layers lie elsewhere than in the prefill context, and sums follow the cells
            np.testing.assert_allclose(context.continuation(ANSWER), stock.continuation(ANSWER), atol=1e-3)
        else:
            assert context.get_state() == stock.get_state()
            assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


@pytest.mark.long
def test_two_pruned_turns_and_a_whole_one(model, kind):
    """The second turn goes on from the states of the first, whose dropped tokens deeper layers have not seen."""
    with model.context(OPTIONS) as context, model.context(OPTIONS) as stock:
        for used in (context, stock):
            session = give_past(used)
            prune_turn(session)
            used.decode(prompt(2, 5))
        assert context.get_state() == stock.get_state()
        session = context._sessions[0]
        session.extend(prompt(3, 50), WINDOW)
        session.finish()
        stock.decode(prompt(3, 50))
        if kind in SLIDING:
            np.testing.assert_allclose(context.continuation(ANSWER), stock.continuation(ANSWER), atol=1e-3)
        else:
            assert context.get_state() == stock.get_state()
            assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))


@pytest.mark.long
def test_chunks_change_nothing(model, kind):
    """But for the order of sums."""
    results = []
    for n_batch, n_ubatch in ((48, 32), (32, 32), (128, 128)):
        with model.context(replace(OPTIONS, n_batch=n_batch, n_ubatch=n_ubatch)) as context:
            prune_turn(give_past(context))
            results.append(context.continuation(ANSWER))
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            assert np.abs(a - b).max() < 0.02 * a.std()


@pytest.mark.long
def test_the_states_show(model, kind):
    """After another prompt, a turn answers otherwise."""
    with model.context(OPTIONS) as context, model.context(OPTIONS) as other:
        prune_turn(give_past(context))
        session = other.session(1024)
        policy = make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}")
        prefill(session, prompt(5), policy, N_KEPT)
        other.decode([80, 81])
        prune_turn(session)
        assert np.abs(context.logits() - other.logits()).max() > 1e-5


@pytest.mark.long
@pytest.mark.parametrize("how", ["abort", "cancel", "begin again"])
def test_whatever_ends_it_early(model, kind, how):
    """In every slice: the past is what it was, its states too: state bytes, logits and greedy continuation."""
    with model.context(OPTIONS) as context, model.context(OPTIONS) as untouched:
        session = give_past(context)
        give_past(untouched)
        before = context.get_state(), context.logits().tobytes()
        session.extend(TURN, WINDOW)
        session.start_finish()
        n_slices = 1 + sum(1 for _ in iter(session.step, False))
        context.clear()
        session = give_past(context)
        for at in range(1, n_slices, 3):
            if how == "cancel":
                calls: list[int] = []
                session.set_progress(lambda done, _, at=at, calls=calls: calls.append(done) or len(calls) < at)
                with pytest.raises(PrefillCancelled):
                    session.extend(TURN, WINDOW)
                    session.finish()
                session.set_progress(None)
            else:
                session.extend(TURN, WINDOW)
                session.start_finish()
                for _ in range(at):
                    assert session.step()
                if how == "begin again":
                    session.extend(TURN[:10], WINDOW)
                    session.run(1, False)
                session.abort()
            assert session.info().n_tokens == 0
            assert (context.get_state(), context.logits().tobytes()) == before
        assert context.greedy(6) == untouched.greedy(6)
        assert_same([context.logits()], [untouched.logits()])


def test_pasts_with_other_states_are_refused(kind, model):
    """A sequence that shares its state, or lives beside another."""
    if kind not in STATES:
        pytest.skip("no states")
    with model.context(replace(OPTIONS, n_seq_max=2, unified=True)) as context:
        session = context.session(256)
        Sequences(context).decode(0, prompt())
        llama_cpp.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        with pytest.raises(NativeError, match="is of another sequence"):
            session.extend(TURN, WINDOW)
        llama_cpp.llama_memory_seq_rm(context.memory, 1, -1, -1)
        session.extend(TURN, WINDOW)
        session.finish()
        Sequences(context).decode(1, prompt(9, 20))
        with pytest.raises(NativeError, match="is of another sequence"):
            session.extend(TURN, WINDOW)
