"""What tests of prefills share: policies that select on random weights too, a callback that interrupts, reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from asl_gguf.policies import ASL, REGISTRY, FastKV, Policy
from asl_gguf.policies.contract import Decision, Prompt
from asl_gguf.report import PrefillReport


@dataclass(frozen=True)
class FirstTokens(Policy):
    """The beginning of the prompt, and its window."""

    name: ClassVar[str] = "first-tokens"

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return False

    def start(self, prompt: Prompt):
        kept = np.r_[: prompt.n_kept - self.window, prompt.n_tokens - self.window : prompt.n_tokens].astype(np.int32)
        return lambda scores: Decision(kept, kept)


class Interrupt:
    """A progress callback that answers or raises at its n-th call."""

    def __init__(self, at: int, answer: bool | BaseException) -> None:
        self.calls: list[tuple[int, int]] = []
        self._at, self._answer = at, answer

    def __call__(self, done: int, total: int) -> bool | None:
        self.calls.append((done, total))
        if len(self.calls) != self._at:
            return None
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


ON_ANY_MODEL = tuple(name for name, kind in REGISTRY.items() if kind.ranks_by == "attention")
"""policies that ask for no indexer"""

WINDOW = 32

POLICIES: dict[str, Policy] = {
    **{name: REGISTRY[name]() for name in ON_ANY_MODEL},
    "asl-selects": ASL(min_layer=2, obs_layers=2, tau=2),
    "asl-other-window": ASL(window=16, min_layer=2, obs_layers=2, tau=2),
    "fastkv-recorded-window": FastKV(window=WINDOW, tsp_layer=2, cache_k="all"),
    "fastkv-first": FastKV(tsp_layer=0, cache_k=120),
}


def untimed(report: PrefillReport) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name not in ("prefill_seconds", "seconds")}
