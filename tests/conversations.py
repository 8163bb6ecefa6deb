"""Conversations of engine.sequence in a context that they share, as tests make them."""

from __future__ import annotations

from typing import Any

from asl_gguf.budget.rule import BudgetContext, ShareRule
from asl_gguf.budget.share import Budget
from asl_gguf.engine.place import SharedContext
from asl_gguf.engine.sequence import Sequence
from asl_gguf.engine.transcript import Transcript
from asl_gguf.policies import Policy, SpanASL
from harness import Context

N_CTX = 512
SETTLES = SpanASL(window=16, min_layer=2, obs_layers=2, tau=2.0)


def make_rule(policy: Policy = SETTLES, budget: float = 0.3, **options: Any) -> ShareRule:
    return ShareRule(Budget(budget, min_prompt=32), BudgetContext("", N_CTX, policy, room=0, **options))


def make_sequence(shared: Context, seq_id: int, policy: Policy = SETTLES, **options: Any) -> Sequence:
    place = SharedContext(shared.handle, seq_id, shared.params, N_CTX, **options)
    return Sequence(place, make_rule(policy), Transcript(N_CTX))
