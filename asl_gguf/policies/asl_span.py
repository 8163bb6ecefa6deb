"""ASL-span: ASL with a ranking that finds what small models copy. Ours; docs/POLICIES.md has the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .asl import ASL

_LEAST_WINDOW = 12
"""chat templates end a prompt with up to ten tokens of markers, which ask for nothing"""


@dataclass(frozen=True)
class SpanASL(ASL):
    """The default policy.

    Its ranking: the first 4 tokens (attention sinks) leave it and are always kept; the newest queries count most,
    those 8 tokens older half as much; each KV head's scores are divided by their sum; a token's score reaches 10
    tokens forward and 6 back, so that what follows an attended token is kept with it; deeper layers get the tokens
    with the best sum over the newest 3 layers. Its stopping rule compares the 64 leading tokens only and refers to the
    variance's running peak; `look_again` says when a deeper layer selects. The window shrinks with the budget: to an eighth of it, and 12 tokens at least. Below 200
    tokens, so does what of a score reaches back: with the square of the budget.
    """

    name: ClassVar[str] = "asl-span"

    n_sink: int = 4
    normalise_heads: bool = True
    span_forward: int = 10
    span_back: int = 6
    back_room: int = 200
    half_life: float | None = 8
    evidence_layers: int = 3
    min_depth: float = 0.56
    obs_tokens: int | None = 64
    tau: float = 0.9
    variance_reference: Literal["first", "peak", "random"] = "peak"
    n_question: int = 48
    look_again: bool = True
    """where several places are needed, a deeper layer selects, and layers before it keep rows of what it selects; on models
    with known thresholds (budget/late.py)"""

    @property
    def looks_again(self) -> bool:
        return self.look_again

    @property
    def min_kept(self) -> int:
        return min(self.window, _LEAST_WINDOW) + self.n_sink + 1

    def window_of(self, n_current: int, n_kept: int) -> int:
        # the window is always kept: of a budget of 50 tokens, 32 would leave next to nothing for the document
        most = max(_LEAST_WINDOW, min(n_kept // 8, n_kept - self.n_sink - 1))
        return min(n_current, self.window, most)
