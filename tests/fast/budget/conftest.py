"""Fixtures of the tests of budgets."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from asl_gguf.budget import latency
from timed_machine import MEASURING, SPEED


@pytest.fixture(name="machine")
def make_machine(monkeypatch) -> list[int]:
    """Layers take SPEED; the lengths that were measured."""
    lengths: list[int] = []
    clock = SimpleNamespace(now=0.0)

    def layer_seconds(session: Any, tokens: Sequence[int], n_layer: int) -> float:
        lengths.append(len(tokens))
        clock.now += MEASURING * len(tokens)
        return SPEED * len(tokens)

    monkeypatch.setattr(latency, "layer_seconds", layer_seconds)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return lengths
