"""Fixtures of the tests of budgets."""

from __future__ import annotations

from typing import Any

import pytest

from asl_gguf.budget import latency
from asl_gguf.budget.latency import Measured
from timed_machine import measured


@pytest.fixture(name="machine")
def make_machine(monkeypatch) -> list[int]:
    """Layers take layer_seconds; the lengths that were measured."""
    lengths = []

    def measure_layers(session: Any, tokens: list[int], policy: Any, n_layer: int) -> Measured:
        lengths.append(len(tokens))
        return measured(len(tokens), n_layer)

    monkeypatch.setattr(latency, "measure_layers", measure_layers)
    return lengths
