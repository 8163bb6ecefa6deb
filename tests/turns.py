"""A turn that follows what a decode context holds, layer by layer: the prompts and steps that tests share."""

from __future__ import annotations

import numpy as np

from asl_gguf.engine.prefill import prefill
from asl_gguf.native.session import Session
from asl_gguf.policies import Policy, SnapKV, SpanASL
from harness import Context, Options, prompt

OPTIONS = Options(n_ctx=512, n_batch=40, n_ubatch=24)
WINDOW = 8
N_KEPT = 50
TOKENS = prompt(180)
TURN = prompt(100, seed=5)
ANSWER = [70, 71, 72]
POLICIES: dict[str, Policy | None] = {
    "whole": None,
    "selected": SpanASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2.0),
    "by-head": SnapKV(window=WINDOW),
}


def give_past(context: Context, policy: Policy | None) -> Session:
    """A prompt, pruned or not, and two tokens of its answer."""
    session = context.session(1024)
    if policy is None:
        session.begin(TOKENS, WINDOW)
        session.finish()
    else:
        assert prefill(session, TOKENS, policy, N_KEPT).pruned
    context.decode([80])
    context.decode([81])
    return session


def full_layers(session: Session) -> list[int]:
    return [layer for layer, slides in enumerate(session.sliding) if not slides]


def prune_turn(session: Session, turn: list[int], kept: np.ndarray, n_layers: int = 2, sliced: bool = False) -> None:
    """Extends by a turn of which only these tokens' rows are kept, and go on after n_layers full layers."""
    session.extend(turn, WINDOW)
    n_past = session.info().n_past
    index = np.concatenate([np.arange(n_past), n_past + kept]).astype(np.int32)
    for layer in full_layers(session)[:n_layers]:
        session.run(layer + 1 - session.info().next_layer, True)
        assert session.scores().shape[1] == n_past + len(turn)
        session.keep_rows(index)
    session.keep_tokens(index)
    session.start_finish()
    while session.step():
        pass


def kept_of(n_tokens: int, n_kept: int = 30) -> np.ndarray:
    rest = np.random.default_rng(3).choice(n_tokens - WINDOW, n_kept - WINDOW, replace=False)
    return np.concatenate([np.sort(rest), np.arange(n_tokens - WINDOW, n_tokens)]).astype(np.int32)


def snapshot(context: Context) -> dict[str, object]:
    """State bytes and logits."""
    state, logits = context.get_state(), context.logits().tobytes()
    return {"state": state, "logits": logits}
