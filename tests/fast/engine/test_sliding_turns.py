"""Long turns, one after another, on models with sliding windows: those layers hold more cells than rows are kept."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

import tiny_gguf
from asl_gguf.budget.rule import BudgetContext, ShareRule
from asl_gguf.budget.share import Budget
from asl_gguf.engine.place import OwnContext, SharedContext
from asl_gguf.engine.plan import Request
from asl_gguf.engine.sequence import Sequence
from asl_gguf.engine.transcript import Transcript
from asl_gguf.native.session import Session
from asl_gguf.policies import make_policy
from harness import F32, Context, Model, Options, prompt
from sequences import Sequences
from tiny_gguf import SLIDING

N_CTX = 2048
WINDOW = 8
N_ROWS = 30
"""more than the tiny models' window"""


@pytest.fixture(params=SLIDING)
def architecture(request) -> str:
    return request.param


def keep_rows_alone(session: Session) -> None:
    """Layers keep some of the current tokens, the past's among them, and all of them run."""
    info = session.info()
    rows = np.append(np.arange(info.n_past + N_ROWS - WINDOW), np.arange(info.n_current - WINDOW, info.n_current))
    for slides in session.sliding:
        session.run(1, False)
        if not slides:
            session.keep_rows(rows.astype(np.int32))
    session.finish()


def with_two_turns(context: Context) -> Session:
    session = context.session(N_CTX)
    session.begin(prompt(100), WINDOW)
    keep_rows_alone(session)
    session.extend(prompt(150, seed=1), WINDOW)
    keep_rows_alone(session)
    return session


@pytest.mark.parametrize("swa_full", [True, False])
def test_a_third_turn_is_stocks(load_tiny, architecture, swa_full):
    """Where rows alone were dropped: all that a window reaches is there."""
    options = Options(n_ctx=N_CTX, kv=F32, swa_full=swa_full)
    with load_tiny(architecture).context(options) as context, load_tiny(architecture).context(options) as stock:
        session = with_two_turns(context)
        with_two_turns(stock)
        turn = prompt(90, seed=2)
        session.extend(turn, WINDOW)
        assert session.info().n_past == 2 * N_ROWS
        session.finish()
        np.testing.assert_allclose(context.logits(), stock.decode(turn), atol=2e-3)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_windows_longer_than_what_is_kept(tmp_path, monkeypatch, architecture, shared):
    """And than the private context of a sequence."""
    monkeypatch.setattr(tiny_gguf, "SLIDING_WINDOW", 600)
    path = tiny_gguf.write_model(tmp_path / "model.gguf", architecture)
    options = Options(n_ctx=2 * N_CTX, n_seq_max=2 if shared else 1, unified=True)
    with closing(Model(path)) as model, model.context(options if shared else Options(n_ctx=256)) as context:
        place = (
            SharedContext(context.handle, 0, context.params, N_CTX)
            if shared
            else OwnContext(context.handle, context.session(N_CTX))
        )
        rule = ShareRule(Budget(0.1, min_prompt=32), BudgetContext("", N_CTX, make_policy("snapkv:window=8"), room=0))
        sequence, tokens = Sequence(place, rule, Transcript(N_CTX)), list[int]()
        for turn, n_tokens in enumerate((300, 400, 400, 300)):
            tokens += prompt(n_tokens, seed=turn)
            plan = sequence.plan(Request(tokens))
            assert plan.action == ("turn" if turn else "prefill")
            sequence.run(plan)
            assert np.isfinite(context.logits()).all()
            Sequences(context).decode(0, [70])
            sequence.transcript.append([70])
            tokens.append(70)
