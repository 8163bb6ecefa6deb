"""Chooses ASL's min_layer and tau for a model from profiles of sample prompts. profiling.py makes those."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import OptionError
from ...models.calibration import MeanProfile, Means
from ...policies.contract import Indices
from ...policies.parameters import require_share

EASY = ("niah_prose", "niah_noise", "passkey")
"""tasks whose answer stands alone in the text"""
HARD = ("multikey", "keyvalue", "multivalue")
"""tasks with several answers, or many that look like one"""

TAUS = tuple(round(0.025 * step, 3) for step in range(1, 41))
"""values of tau that are tried; above 1 the rule would select at min_layer, whatever the prompt"""

_DIGITS = 9
"""decimals in which costs are compared: what differs less is equal"""


@dataclass(frozen=True)
class Outcome:
    """One prompt, selected at one layer."""

    layer: int
    """last layer that sees all tokens; the model's last one if nothing is selected"""
    nll: float
    """mean negative log-likelihood of the reference text's tokens, in nats"""
    share: float
    """share of a full prefill's token-layers that is computed"""


@dataclass(frozen=True)
class Profile:
    """What one example shows: the rank variance of each layer, and the answer for each selection layer."""

    hard: bool
    first_layer: int
    """the first layer with a variance"""
    variance: tuple[float, ...]
    """rank variance of first_layer and of every layer after it"""
    measured: tuple[Outcome, ...]
    """by increasing layer; the last one is the model's last layer, where nothing is selected"""
    nll_full: float
    """with the full cache"""
    before: Outcome
    """with the policy's present parameters"""
    random_variance: float
    """rank variance of random ranks"""
    asked: tuple[int, ...] = ()
    """of a model some of whose layers slide or hold a state: the others, which alone are asked. All layers named here are
    places in this list then, and the reference of the stopping rule reaches back to the first of them"""
    first_min_layer: int | None = None
    """the first layer that may be min_layer; None: first_layer"""

    @property
    def n_layer(self) -> int:
        return self.first_layer + len(self.variance)

    def of_model(self, layer: int) -> int:
        """A layer named here -> the model's."""
        return self.asked[layer] if self.asked else layer

    def at(self, layer: int) -> Outcome:
        """The outcome of a selection at this layer, interpolated between those that were measured."""
        layers = [outcome.layer for outcome in self.measured]
        nll = np.interp(layer, layers, [outcome.nll for outcome in self.measured])
        share = np.interp(layer, layers, [outcome.share for outcome in self.measured])
        return Outcome(layer, float(nll), float(share))

    def selected(self, min_layer: int, tau: float, variance_reference: str) -> Outcome:
        """The outcome of ASL's stopping rule with these parameters."""
        return self.at(int(self.layers(min_layer, [tau], variance_reference)[0]))

    def layers(self, min_layer: int, taus: Sequence[float], variance_reference: str) -> Indices:
        """`selection_layers` of this prompt."""
        reference = self.random_variance if variance_reference == "random" else variance_reference
        return selection_layers(self.variance, self.first_layer, min_layer, taus, reference, whole=bool(self.asked))

    def quality_loss(self, outcome: Outcome) -> float:
        """Probability of a reference token (geometric mean) that the full cache gives and this outcome does not."""
        return max(0.0, math.exp(-self.nll_full) - math.exp(-outcome.nll))


@dataclass(frozen=True)
class Choice:
    """Parameters of the stopping rule, and what they are expected to do."""

    min_layer: int
    tau: float
    means: Means


def selection_layers(
    variance: Sequence[float],
    first_layer: int,
    min_layer: int,
    taus: Sequence[float],
    reference: str | float,
    *,
    whole: bool = False,
) -> Indices:
    """The layers at which ASL's rule selects, one for each tau; the last layer where it selects nothing.

    Args:
        variance: rank variance of first_layer and of every layer after it, over the full number of observed layers.
        min_layer: first monitored layer, not below first_layer.
        reference: "first", "peak", or the variance that is compared with.
        whole: layers before min_layer serve as the reference, too.
    """
    values = np.asarray(variance, dtype=np.float64)[0 if whole else min_layer - first_layer :]
    fixed = values[0] if isinstance(reference, str) else reference
    base = np.maximum.accumulate(values) if reference == "peak" else np.full_like(values, fixed)
    n_left = first_layer + len(variance) - min_layer
    values, base = values[-n_left:], base[-n_left:]
    ratio = np.divide(values, base, out=np.ones_like(values), where=base > 0)
    below = ratio < np.asarray(taus)[:, None]
    below[:, -1] = True
    return (min_layer + below.argmax(axis=-1)).astype(np.int32)


def means(profiles: Sequence[Profile], outcomes: Sequence[Outcome]) -> Means:
    """Averages of one outcome per profile."""
    pairs = list(zip(profiles, outcomes, strict=True))
    easy = [profile.of_model(outcome.layer) for profile, outcome in pairs if not profile.hard]
    hard = [profile.of_model(outcome.layer) for profile, outcome in pairs if profile.hard]
    return Means(
        layer_easy=float(np.mean(easy or hard)),
        layer_hard=float(np.mean(hard or easy)),
        nll_loss=float(np.mean([outcome.nll - profile.nll_full for profile, outcome in pairs])),
        quality_loss=float(np.mean([profile.quality_loss(outcome) for profile, outcome in pairs])),
        prefill_share=float(np.mean([outcome.share for outcome in outcomes])),
    )


def choose(profiles: Sequence[Profile], tradeoff: float, variance_reference: str) -> Choice:
    """The min_layer and tau with the smallest cost over these examples.

        cost = (1 - tradeoff) * loss + tradeoff * prefill_share

    Both terms are means in [0, 1]. loss is `Profile.quality_loss`, the probability of a reference token that pruning
    costs, at the selection layer or at any later one, whichever is the worst: what an early layer gets right and a
    later one does not is luck, and other prompts will not have it. 0 looks for the most accurate rule, 1 for the
    fastest; a larger tradeoff never makes the prefill longer. Of equal costs the shorter prefill counts, then the
    smaller loss; of rules that do the same, the min_layer with the widest range of tau, and the middle of that.

    Raises:
        OptionError: there are no profiles, or tradeoff is outside [0, 1].
    """
    require_share(tradeoff, "tradeoff", one=True)
    if not profiles:
        raise OptionError("profiles: expected at least one, got none")
    first, last = profiles[0].first_layer, profiles[0].n_layer - 1
    outcomes = [[profile.at(layer) for layer in range(first, last + 1)] for profile in profiles]
    as_measured = [[p.quality_loss(outcome) for outcome in row] for p, row in zip(profiles, outcomes)]
    losses = np.maximum.accumulate(np.array(as_measured)[:, ::-1], axis=1)[:, ::-1]
    shares = [[outcome.share for outcome in row] for row in outcomes]
    costs: dict[tuple[float, ...], list[tuple[int, float]]] = {}
    # the rule selects after min_layer (at it, compared with random ranks) and before the last; nothing was measured at first
    first_min = profiles[0].first_min_layer
    for min_layer in range(first + (variance_reference == "random") if first_min is None else first_min, last - 1):
        rows = [p.layers(min_layer, TAUS, variance_reference) - first for p in profiles]
        loss = np.mean([np.take(values, row) for values, row in zip(losses, rows)], axis=0)
        share = np.mean([np.take(values, row) for values, row in zip(shares, rows)], axis=0)
        for tau, *costs_of in zip(TAUS, (1 - tradeoff) * loss + tradeoff * share, share, loss):
            costs.setdefault(tuple(round(float(value), _DIGITS) for value in costs_of), []).append((min_layer, tau))
    if not costs:
        raise OptionError(
            f"expected more layers to choose from than {profiles[0].asked}; use fastkv, whose layer is fixed"
        )
    min_layer, tau = _middle(costs[min(costs)])
    return Choice(
        profiles[0].of_model(min_layer),
        tau,
        means(profiles, [profile.selected(min_layer, tau, variance_reference) for profile in profiles]),
    )


def _middle(pairs: list[tuple[int, float]]) -> tuple[int, float]:
    """The middle one of (min_layer, tau) pairs that do the same: the most frequent min_layer, and the middle of its taus."""
    counts = Counter(min_layer for min_layer, _ in pairs)
    widest = max(counts, key=lambda min_layer: counts[min_layer])
    taus = [tau for min_layer, tau in pairs if min_layer == widest]
    return widest, taus[(len(taus) - 1) // 2]


def mean_profile(profiles: Sequence[Profile]) -> MeanProfile:
    """Averages for the file and the picture; there must be easy and hard examples."""
    groups = [[profile for profile in profiles if profile.hard is hard] for hard in (False, True)]
    variance = [np.mean([profile.variance for profile in group], axis=0) for group in groups]
    loss = [
        np.mean([[outcome.nll - profile.nll_full for outcome in profile.measured] for profile in group], axis=0)
        for group in groups
    ]
    quality = np.mean([[p.quality_loss(outcome) for outcome in p.measured] for p in profiles], axis=0)
    share = np.mean([[outcome.share for outcome in profile.measured] for profile in profiles], axis=0)
    return MeanProfile(
        n_layer=profiles[0].of_model(profiles[0].n_layer - 1) + 1,
        first_layer=profiles[0].of_model(profiles[0].first_layer),
        variance_easy=_rounded(variance[0]),
        variance_hard=_rounded(variance[1]),
        layers=tuple(profiles[0].of_model(outcome.layer) for outcome in profiles[0].measured),
        nll_loss_easy=_rounded(loss[0]),
        nll_loss_hard=_rounded(loss[1]),
        quality_loss=_rounded(quality),
        prefill_share=_rounded(share),
        random_variance=float(np.mean([profile.random_variance for profile in profiles])),
        asked=profiles[0].asked[profiles[0].first_layer :],
    )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
