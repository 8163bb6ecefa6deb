"""Calibration profiles that are made up, and a calibration chosen from them."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from asl_gguf.eval.calibrate.tradeoff import Outcome, Profile, choose, mean_profile, means
from asl_gguf.models.calibration import Calibration, settings_of
from asl_gguf.policies import make_policy

FIRST, N_LAYER = 7, 30


def hill(fall: int) -> tuple[float, ...]:
    """A rank variance that rises up to four layers before `fall` and is small from there on."""
    layers = np.arange(FIRST, N_LAYER)
    return tuple(np.where(layers < fall, 100 + 20.0 * np.minimum(layers, fall - 4), 10.0).tolist())


def made_up(*, hard: bool, fall: int, cliff: int, slope: float = 0.0, step: int = 1) -> Profile:
    """Right from the layer `cliff` on, `slope` nats worse per layer before the last one, and lost before the cliff."""

    def outcome(layer: int) -> Outcome:
        nll = 0.1 + slope * (N_LAYER - 1 - layer) if layer >= cliff else 4.0
        return Outcome(layer, nll, (layer + 1) / N_LAYER)

    layers = [*range(FIRST + 1, N_LAYER - 1, step), N_LAYER - 1]
    return Profile(hard, FIRST, hill(fall), tuple(map(outcome, layers)), 0.1, outcome(N_LAYER - 1), 400.0)


def both(*, cliffs: tuple[int, int], falls: tuple[int, int], slope: float = 0.0) -> list[Profile]:
    """Two easy and two hard examples."""
    pairs = zip((False, True), falls, cliffs)
    return [made_up(hard=hard, fall=fall + i, cliff=cliff, slope=slope) for hard, fall, cliff in pairs for i in (0, 1)]


@functools.lru_cache
def make_calibration(policy: str = "asl-span", **changes: object) -> Calibration:
    profiles = both(cliffs=(11, 17), falls=(11, 17), slope=0.01)
    choice = choose(profiles, 0.3, "peak")
    found = Calibration(
        policy=policy,
        min_layer=choice.min_layer,
        tau=choice.tau,
        settings=settings_of(make_policy(policy)),
        before=means(profiles, [profile.before for profile in profiles]),
        after=choice.means,
        profile=mean_profile(profiles),
        tradeoff=0.3,
        budget=0.1,
        tokens=1024,
        samples=2,
        easy=("passkey",),
        hard=("keyvalue",),
        version="0",
    )
    return replace(found, **changes)
