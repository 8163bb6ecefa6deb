"""A machine whose layers take the seconds that tests choose."""

from __future__ import annotations

N_CTX = 2048
N_LAYER = 6
SPEED = 1e-3
"""seconds per token and layer"""
MEASURING = 2 * SPEED
"""seconds that measuring takes, per token"""


def prefill_seconds(n_tokens: int, n_kept: int, layer: int | None = None) -> float:
    """Of a prompt that selects at a layer; None: nowhere."""
    whole = N_LAYER if layer is None else layer + 1
    return SPEED * (n_tokens * whole + n_kept * (N_LAYER - whole))
