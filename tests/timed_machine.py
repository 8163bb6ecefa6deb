"""A machine whose layers take the seconds that tests choose."""

from __future__ import annotations

from asl_gguf.budget.latency import Measured

N_CTX = 2048
N_LAYER = 6
PER_TOKEN, PER_PAIR, OVERHEAD = 1e-3, 2e-6, 0.05
FIRST_PER_TOKEN = 1e-4
"""of the first layer, beside what every layer takes"""


def layer_seconds(n_tokens: int) -> float:
    """A machine that is exactly as the model says."""
    return PER_TOKEN * n_tokens + PER_PAIR * n_tokens * (n_tokens + 1) / 2


def measured(n_tokens: int, n_layer: int = N_LAYER) -> Measured:
    layer = layer_seconds(n_tokens)
    first = layer + FIRST_PER_TOKEN * n_tokens
    return Measured(OVERHEAD, first, layer if n_layer > 1 else first)


def overhead(n_tokens: int) -> float:
    return OVERHEAD + FIRST_PER_TOKEN * n_tokens


def spent(n_tokens: int) -> float:
    """Seconds of measuring."""
    short = n_tokens // 8
    return sum(measured(n).total for n in (min(short, 32), short, n_tokens))
