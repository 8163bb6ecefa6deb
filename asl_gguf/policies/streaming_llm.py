"""StreamingLLM: https://arxiv.org/abs/2309.17453"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .contract import Decision, LayerScores, Observer, Policy, Prompt
from .parameters import require_int
from .ranking import fixed_tokens, keep_best


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Every layer sees all tokens; afterwards it keeps the first ones (attention sinks) and the newest."""

    name: ClassVar[str] = "streaming_llm"
    scores_kept_rows: ClassVar[bool] = False

    window: int = 1
    n_sink: int = 4
    """first tokens of the prompt that are always kept"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.n_sink, "n_sink", 0)

    @property
    def first_kept(self) -> int:
        return self.n_sink

    @property
    def min_kept(self) -> int:
        return self.window + self.n_sink

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return False

    def first_selection(self, n_layer: int) -> int | None:
        return None

    def start(self, prompt: Prompt) -> Observer:
        def observe(scores: LayerScores) -> Decision:
            newest = np.arange(scores.n_current, dtype=np.float32)
            return Decision(keep_best(newest, fixed_tokens(scores, self.n_sink, self.window), prompt.n_kept))

        return observe
