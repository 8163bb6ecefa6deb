"""The contract of a policy. Policies see NumPy alone: no model, no engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import OptionError
from ..types import Decision, LayerScores, Prompt

Observer = Callable[[LayerScores], Decision]


@dataclass(frozen=True)
class Policy(ABC):
    """What to keep of a prompt, and from which layer on.

    A policy is immutable and may serve any number of prompts; what it remembers of one prompt lives
    in the observer that `start` returns.
    """

    name: ClassVar[str]
    """what reports call it; the registry's name"""

    window: int = 32
    """last prompt tokens whose attention is scored; always kept"""

    def __post_init__(self) -> None:
        require_int(self.window, "window", 1)

    @property
    def min_kept(self) -> int:
        """Fewest tokens this policy can keep."""
        return self.window + 1

    def needs_scores(self, layer: int) -> bool:
        """Whether the policy looks at the scores of this layer; if not, they are not computed."""
        return True

    @abstractmethod
    def start(self, prompt: Prompt) -> Observer:
        """Begins a prompt.

        Returns:
            A function that is called with each layer's scores in turn, as long as no tokens were
            dropped, and decides what to keep. Layers whose scores are not needed come with an empty
            attention array.
        """


def require_int(value: object, name: str, at_least: int) -> None:
    """Raises OptionError unless value is an integer of at least at_least."""
    valid = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= at_least
    require(bool(valid), name, f"an integer of at least {at_least}", value)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raises OptionError unless the condition holds."""
    if not condition:
        raise OptionError(f"{name}: expected {expected}, got {value!r}")
