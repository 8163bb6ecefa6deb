"""Budgets of one prompt that are decided as it is read: how many tokens, and whether a deeper layer selects them.

What the end of the prompt looks for shows in one layer (policies/reading.py). A needle is selected there. Several answers,
chains and summaries are ranked better some layers deeper, and then earlier layers have to hold their K/V as well: layers keep
more rows than the budget until tokens are selected, and give the rest back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..policies import Policy
from ..policies.contract import LayerScores
from ..policies.cut import Cut
from ..policies.reading import N_QUERIES, Reading, read
from .share import ROOM
from .targets import Auto

_LEAST_TOKENS = 100
"""tokens to keep at least, whatever the lower limit of `auto`: what one answer needs is a number of tokens, not a share"""
_READABLE = 160
"""tokens whose window holds the queries that are read (SpanASL.window_of)"""
_TOO_FEW = 40
"""fewer tokens cannot hold the sinks and such a window: the budget is not read, and its window stays narrow"""
_LEAST_READ = 80
"""a fixed budget of fewer tokens is selected in the first layer that may: a chain does not fit it"""
_FEW = 120
"""of fewer tokens, a deeper layer selects for chains and several answers alone: summaries lose by it there. Their window stays
narrow: 12 queries suffice to tell a chain"""
_HELD = 2
"""rows that layers hold until a fixed budget's tokens are selected, in budgets. Of few tokens these would be too few: ROOM,
for which there are cells"""
_SEVERAL = 0.5
"""the need for several answers and chains: with K/V in all layers, less than half of what a summary takes is enough"""
_ASKING = 0.25
"""of few tokens for several answers, what the question's words may take beside the window. A chain needs none of them; a list
of answers without them repeats its first ones"""
_UNSURE = 0.2
"""the need where the prompt goes on with what stands in it: look-ups need the least, but short questions about a whole text can
read like them"""

_UNKNOWN = "no thresholds are known for this model (asl-gguf calibrate looks for some)"
_UNREAD = "this prompt could not be read"


@dataclass(frozen=True)
class Thresholds:
    """Where a model's readings part (docs/POLICIES.md has how they were found). Pairs: from the first figure to the second one
    the need for tokens goes from one end to the other."""

    layer: int
    """that is read"""
    deeper: int
    """that selects where much is needed"""
    document: float
    """less of the attention on the document: the answer has to be looked for; more: the prompt goes on with what stands there"""
    found: tuple[float, float]
    """peak, looking: from many places to one"""
    chained: tuple[float, float]
    """peak, going on: from one place to many. What all of a head sees at once leads on to something else, as in a chain"""
    summary: tuple[float, float]
    """attention on the document: so little where the answer follows from all of it, to so much where it stands somewhere"""
    lone: tuple[float, float] = (0.97, 0.985)
    """peak: so much is one place's, however little that is (needles in long prompts)"""
    faint: float = 0.0
    """attention on the document: with less than this, one place has to stand out as `sure` says"""
    sure: tuple[float, float] = (0.955, 0.985)
    """peak, looking faintly: from many places to one. Questions that people wrote read like needles by `found`"""

    scattered: tuple[float, float] = (0.0, 0.0)
    """attention on the document, between these: several answers, if no place stands out as `found` says"""

    def read(self, scores: LayerScores, n_sink: int) -> Reading | None:
        """Reads the layer."""
        return read(scores, n_sink)

    def words(self, reading: Reading) -> str:
        """What was read, for reports."""
        return (
            f"in layer {self.layer}, {reading.document:.1%} of the attention is on the document, "
            f"{reading.peak:.1%} of that in one place"
        )

    def several(self, reading: Reading) -> bool:
        """Whether several answers are looked for, and nothing else: asked where few tokens are kept."""
        begin, end = self.scattered
        return begin <= reading.document < end and _ramp(reading.peak, *self.found) < 0.5

    def need(self, reading: Reading) -> float:
        """0 for what stands in one place, _SEVERAL for what stands in some, 1 for what follows from all of the document."""
        if reading.document >= self.document:
            return max(_UNSURE, _SEVERAL * _ramp(reading.peak, *self.chained))
        all_of_it = (1 - _ramp(reading.document, *self.summary)) * (1 - _ramp(reading.peak, *self.lone))
        found = self.sure if reading.document < self.faint else self.found
        return max(all_of_it, _SEVERAL * (1 - _ramp(reading.peak, *found)))


CALIBRATED = {
    (30, 3, 576): Thresholds(
        18,
        22,
        document=0.11,
        found=(0.925, 0.955),
        chained=(0.985, 0.996),
        summary=(0.045, 0.06),
        faint=0.075,
        scattered=(0.055, 0.085),
    )
}
"""shape of a model (native/context.py) -> its thresholds. SmolLM2-135M"""


def _ramp(value: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, (value - begin) / (end - begin)))


Shape = tuple[int, int, int]
"""layers, KV heads and width of a model"""


class PromptBudget:
    """Reads one layer of a prompt, and chooses from that. A `LateBudget`.

    Args:
        n_least: tokens to keep at least, and n_most at most. Where they are the same, the layer alone is chosen.
        n_held: rows to hold until then, n_most at least.
        policy: its first tokens are no part of the document.
        thresholds: of the model, or the cut that was found for it; None: there are none.
        few: so few tokens that a deeper layer selects them for chains and several answers alone, whose room a question's own
            words would take.
    """

    def __init__(
        self,
        n_least: int,
        n_most: int,
        n_held: int,
        *,
        policy: Policy,
        thresholds: Thresholds | Cut | None,
        few: bool = False,
    ) -> None:
        wide = _READABLE if n_most >= _TOO_FEW and not few else 0
        self.n_held, self.n_window = n_held, max(wide, round(math.sqrt(n_least * n_most)))
        self.n_least, self.n_most, self.spreads = n_least, n_most, False
        self.crowded, self.n_asking = False, 0
        self.n_queries = N_QUERIES
        self._policy, self._few = policy, few
        self._thresholds = thresholds
        self._reading: Any = None  # what these thresholds read
        self._in_window: Reading | None = None
        self.choice = "the upper limit: no layer selected tokens"
        """how many tokens, and why"""

    def reads(self, layer: int) -> bool:
        """That which thresholds are known for."""
        return self._thresholds is not None and layer == self._thresholds.layer

    def see(self, scores: LayerScores) -> None:
        """Reads it."""
        if self._thresholds is not None:
            self._reading = self._thresholds.read(scores, self._policy.first_kept)
        if self._few:
            self._in_window = read(scores, self._policy.first_kept, scores.window)

    def choose(self, layer: int, last: int) -> int | None:
        """As `LateBudget.choose`."""
        thresholds, reading = self._thresholds, self._reading
        if thresholds is None or reading is None:
            if thresholds is not None and self.n_least < self.n_most and layer < min(thresholds.layer, last):
                return None  # it is to be read first
            self.choice = f"{self.n_most:,} tokens, the upper limit: {_UNREAD if thresholds else _UNKNOWN}"
            return self.n_most
        need = thresholds.need(reading)
        self.spreads = self._policy.looks_again and need >= _SEVERAL / 2 and thresholds.deeper > thresholds.layer
        if self._few and isinstance(thresholds, Thresholds):
            self._decide_few(thresholds, reading)
        if self.spreads and layer < min(thresholds.deeper, last):
            return None
        n_kept = self.n_least + round(need * (self.n_most - self.n_least))
        self.choice = f"{n_kept:,} tokens: {thresholds.words(reading)}"
        return n_kept

    def _decide_few(self, thresholds: Thresholds, reading: Reading) -> None:
        """Of few tokens, a deeper layer does better for chains and for several answers."""
        narrow = self._in_window or reading
        chain = narrow.document >= thresholds.document and thresholds.need(narrow) >= _SEVERAL
        self.crowded = self.spreads = self._policy.looks_again and (chain or thresholds.several(reading))
        self.n_asking = round(_ASKING * self.n_least) if self.crowded and not chain else 0


def auto_budget(
    auto: Auto,
    policy: Policy,
    n_tokens: int,
    n_most: int,
    shape: Shape,
    n_protected: int = 0,
    cut: Cut | None = None,
) -> PromptBudget:
    """The budget of a prompt under `auto`, which keeps at most n_most tokens.

    Args:
        cut: that was found for the model; where thresholds are known, they decide.
    """
    least = policy.least_with(n_protected) if n_protected else policy.min_kept
    n_least = min(n_most, max(math.ceil(auto.least * n_tokens - 1e-9), _LEAST_TOKENS, least))
    return PromptBudget(n_least, n_most, n_most, policy=policy, thresholds=CALIBRATED.get(shape) or cut)


def fixed_budget(policy: Policy, n_tokens: int, n_kept: int, shape: Shape) -> PromptBudget | None:
    """A budget of n_kept tokens that may be selected in a deeper layer. None: the policy does not look again, or the model has no
    thresholds."""
    thresholds = CALIBRATED.get(shape)
    if not policy.looks_again or not _LEAST_READ <= n_kept < n_tokens or thresholds is None:
        return None
    few = n_kept < _FEW
    n_held = min(n_tokens - 1, ROOM if few else _HELD * n_kept)
    return PromptBudget(n_kept, n_kept, n_held, policy=policy, thresholds=thresholds, few=few)


def guarded_budget(policy: Policy, n_tokens: int, n_kept: int, n_most: int, shape: Shape) -> PromptBudget | None:
    """A budget of n_kept tokens, and of up to n_most where what the prompt looks for does not stand in one place (`asl_guard`).
    None: as in `fixed_budget`."""
    thresholds = CALIBRATED.get(shape)
    if not policy.looks_again or not _TOO_FEW <= n_kept < n_tokens or thresholds is None:
        return None
    n_most = max(n_kept, min(n_most, n_tokens))
    return PromptBudget(n_kept, n_most, n_most, policy=policy, thresholds=thresholds)
