"""Chooses the head that tells prompts which few tokens suffice for from others, and checks it. looking.py reads the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...models.cuts import FoundCut
from ...policies.cut import Cut

TOLERANCE = 0.02
"""nats that the right answers may lose, mean of all prompts, against the upper limit for every prompt"""
KIND_TOLERANCE = 0.3
"""nats that one kind of prompts may lose in the mean"""
MOST_KEPT = 0.9
"""of what the upper limit keeps, `auto` has to keep less than this to be worth it"""
_WORTH = 0.1
"""nats that fewer tokens are worth: what a prompt may lose before it counts against a threshold"""
_WORST = 1.5
"""nats from which a loss counts no more: one prompt does not outweigh fifteen"""
_UNKNOWN = 4.0
"""nats per token from which an answer is not known, and cannot be lost"""
_LEAST_KNOWN = 0.5
"""share of the prompts whose answers have to be known"""
_SHIFT = 0.5
"""standard deviations by which a threshold may be off and must still be good: a value between two prompts is luck"""

_NO_HEAD = "no head tells prompts that lose from the others"

Doubles = npt.NDArray[np.float64]


FEW = (0.0, 1 / 3)
"""what few tokens may be: how far from the least that `auto` keeps to its upper limit (0.1 and 0.2 of 1,024 tokens)"""


@dataclass(frozen=True)
class Seen:
    """One prompt."""

    kind: str
    """task"""
    peaks: Doubles
    """[n_layer, n_head]: `policies.cut.peaks`; NaN where a layer was not read"""
    nll: tuple[float, ...]
    """of the right answer with each of FEW, in nats per token"""
    nll_most: float
    """with the upper limit"""
    kept: tuple[float, ...]
    """shares of the prompt that are kept with each of FEW"""
    most: float

    def loss(self, few: float) -> float:
        """Nats that few tokens cost."""
        return min(self.nll[FEW.index(few)], _UNKNOWN) - min(self.nll_most, _UNKNOWN)


@dataclass(frozen=True)
class Found:
    """What the search ended with."""

    auto: FoundCut | None
    words: str
    """what was found, or why nothing was"""


def search(seen: Sequence[Seen], scale: float) -> tuple[list[Cut], str]:
    """The best cut for each number of few tokens, by which no kind of prompts would lose that it was not chosen on.

    Args:
        scale: of the products that the peaks come from.

    Returns:
        cuts, the fewest tokens first, and why there are none
    """
    cuts, reasons = [], []
    for few in FEW:
        cut, reason = _search(seen, scale, few)
        if cut is None:
            reasons.append(reason)
        else:
            cuts.append(cut)
    return cuts, "; with more of them, ".join(dict.fromkeys(reasons))


def _search(seen: Sequence[Seen], scale: float, few: float) -> tuple[Cut | None, str]:
    losses = np.array([one.loss(few) for one in seen])
    if not len(seen) or not np.isfinite(losses).all():
        return None, "the right answers could not be measured"
    if np.mean([one.nll_most < _UNKNOWN for one in seen]) < _LEAST_KNOWN:
        return None, "the model knows too few of the answers to lose any"
    kinds = np.array([one.kind for one in seen])
    values = np.stack([one.peaks for one in seen])
    flat = values.reshape(len(seen), -1)
    usable = np.isfinite(flat).all(axis=0)
    if not usable.any():
        return None, "no layer before the selection could be read"
    if _allowed(np.maximum(losses, 0), kinds):  # of every prompt
        layer, head = divmod(int(usable.argmax()), values.shape[2])
        return Cut(layer, head, True, 0.0, scale, few), ""
    flat = np.where(usable, flat, 0.0)  # constant: parts nothing
    if reason := _left_out(flat, losses, kinds):
        return None, reason
    best = _best(flat, losses)
    if best is None:
        return None, _NO_HEAD
    place, above, threshold = best
    layer, head = divmod(place, values.shape[2])
    return Cut(layer, head, above, threshold, scale, few), ""


def verdict(cuts: Sequence[Cut], held_out: Sequence[Seen], limit: float) -> Found:
    """The first cut that pays on prompts that it was not chosen on.

    Args:
        limit: the upper limit, for the words.
    """
    found = [_verdict(cut, held_out, limit) for cut in cuts]
    return next((one for one in found if one.auto is not None), found[-1])


def _verdict(cut: Cut, held_out: Sequence[Seen], limit: float) -> Found:
    peaks = np.array([one.peaks[cut.layer, cut.head] for one in held_out])
    losses = np.array([one.loss(cut.few) for one in held_out])
    if not peaks.size or not np.isfinite(peaks).all() or not np.isfinite(losses).all():
        return Found(None, "prompts that were held out could not be read")
    few = np.array([cut.need(float(peak)) < 1 for peak in peaks])
    lost = np.where(few, losses, 0.0)
    kinds = np.array([one.kind for one in held_out])
    place = FEW.index(cut.few)
    kept = float(np.mean([one.kept[place] if enough else one.most for one, enough in zip(held_out, few)]))
    most = float(np.mean([one.most for one in held_out]))
    worst, of_worst = _worst(lost, kinds)
    did = (
        f"on {few.size} other prompts it keeps {kept:.2f} of a prompt in place of {most:.2f}, and the right answers change by "
        f"{lost.mean():+.3f} nats per token (the worst kind, {worst}: {of_worst:+.2f})"
    )
    if not _allowed(lost, kinds):
        return Found(None, f"a head tells them apart, but {did}; {TOLERANCE:g} and {KIND_TOLERANCE:g} are allowed")
    if not kept < MOST_KEPT * most:
        return Found(None, f"a head tells them apart, but {did}: not worth it")
    return Found(FoundCut(cut, float(lost.mean()), kept, limit, int(few.size)), did)


def _worst(lost: Doubles, kinds: npt.NDArray[np.str_]) -> tuple[str, float]:
    """The kind that loses most, and its mean."""
    means = {str(kind): float(lost[kinds == kind].mean()) for kind in dict.fromkeys(kinds)}
    worst = max(means, key=lambda kind: means[kind])
    return worst, means[worst]


def _allowed(lost: Doubles, kinds: npt.NDArray[np.str_]) -> bool:
    return bool(lost.mean() <= TOLERANCE and _worst(lost, kinds)[1] <= KIND_TOLERANCE)


def _left_out(values: Doubles, losses: Doubles, kinds: npt.NDArray[np.str_]) -> str:
    """Whether a choice without one kind of prompts loses that kind. Users' prompts are of kinds that no choice has seen."""
    lost, found = np.zeros(len(losses)), False
    for kind in dict.fromkeys(kinds):
        left = kinds == kind
        best = _best(values[~left], losses[~left])
        if best is not None:
            place, above, threshold = best
            few = values[left, place] > threshold if above else values[left, place] <= threshold
            lost[left] = np.where(few, np.maximum(losses[left], 0), 0)
            found = True
    if not found:
        return _NO_HEAD
    if _allowed(lost, kinds):
        return ""
    worst, of_worst = _worst(lost, kinds)
    return (
        f"prompts of a kind that the choice has not seen would lose {lost.mean():.3f} nats per token in the mean, {worst} "
        f"{of_worst:.2f} ({TOLERANCE:g} and {KIND_TOLERANCE:g} are allowed)"
    )


def _best(values: Doubles, losses: Doubles) -> tuple[int, bool, float] | None:
    """The column of values [prompts, columns], the side and the threshold for which few tokens are worth most.

    A prompt that gets few tokens counts _WORTH less what it loses. Thresholds lie half-way between two prompts, and count as
    the worse of what they do there and _SHIFT standard deviations further.
    """
    worth = _WORTH - np.clip(losses, 0, _WORST)
    most, best = 0.0, None
    for column in range(values.shape[1]):
        for above in (True, False):
            signed = values[:, column] if above else -values[:, column]
            ordered = np.unique(signed)
            if ordered.size < 2:
                continue
            thresholds = (ordered[1:] + ordered[:-1]) / 2
            shifted = thresholds - _SHIFT * signed.std()
            gain = np.minimum(*((worth * (signed > at[:, None])).sum(axis=1) for at in (thresholds, shifted)))
            place = int(gain.argmax())
            if gain[place] > most + 1e-9:
                most, best = float(gain[place]), (column, above, float(abs(thresholds[place])))
    return best
