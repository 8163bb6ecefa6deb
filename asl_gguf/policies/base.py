"""The contract of a policy. Policies see NumPy alone: no model, no engine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import numpy as np

from .. import reference
from ..errors import OptionError
from ..types import Decision, Floats, Indices, LayerScores, Prompt

Observer = Callable[[LayerScores], Decision]


@dataclass(frozen=True)
class Policy(ABC):
    """What to keep of a prompt, and from which layer on.

    A policy is immutable and may serve any number of prompts; what it remembers of one prompt lives
    in the observer that `start` returns.
    """

    name: ClassVar[str]
    """what reports call it; the registry's name"""
    two_pass: ClassVar[bool] = False
    """the kept tokens run again from layer 0, as a prompt of their own"""

    tells_attention: ClassVar[bool] = True
    """scores are computed for the rows that are kept, so that asl_guard can judge them; of two passes they never are"""

    window: int = 32
    """last prompt tokens whose attention is scored; always kept"""

    def __post_init__(self) -> None:
        require_int(self.window, "window", 1)

    @property
    def min_kept(self) -> int:
        """Fewest tokens this policy can keep."""
        return self.window + 1

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        """Most K/V rows that a layer keeps of a prompt: cells of the decode context it takes."""
        return n_kept

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        """Whether the policy looks at this layer's scores; if not, they are not computed."""
        return True

    def needs_keys(self, layer: int, n_layer: int) -> bool:
        """Whether the policy looks at this layer's queries and keys; if so, they are read back."""
        return False

    def keeps_rows(self, layer: int, n_layer: int) -> bool:
        """Whether rows of this layer are kept: no, if a second pass makes new ones."""
        return True

    def first_selection(self, n_layer: int) -> int | None:
        """First layer after which deeper ones may see fewer tokens, for estimates; None: all layers see all of them."""
        return scaled_layer(0.5, n_layer)

    def window_of(self, n_current: int, n_kept: int) -> int:
        """Queries to score when n_current tokens are left of a prompt whose budget is n_kept."""
        return min(self.window, n_current)

    def weights_of(self, window: int) -> Floats | None:
        """float32 [window], factors on the attention of each query; None: 1."""
        return None

    @abstractmethod
    def start(self, prompt: Prompt) -> Observer:
        """Begins a prompt.

        Returns:
            A function that is called with each layer's scores in turn and decides what to keep: until
            it drops tokens, and after that as long as its decisions ask for more. Layers whose scores
            are not needed come with an empty attention array [0, n_current].
        """


def keep_best(scores: Floats, fixed: Indices, n_kept: int) -> Indices:
    """The n_kept tokens with the best scores, the fixed ones among them, in order of position.

    Args:
        scores: [..., n]; ties go to the earlier token.
        fixed: indices of tokens to keep whatever their scores.

    Returns:
        int32 [..., n_kept]

    Raises:
        OptionError: there are more fixed tokens than n_kept.
    """
    if fixed.size > n_kept:
        raise OptionError(
            f"n_kept: expected at least {fixed.size} tokens (sinks, window, protected ones), got {n_kept}"
        )
    ranked = scores.astype(np.float32, copy=True)
    ranked[..., fixed] = np.inf
    return reference.best(ranked, n_kept)


def fixed_tokens(scores: LayerScores, n_sink: int, window: int) -> Indices:
    """Indices of the first n_sink tokens, the last `window` ones and the protected ones."""
    n = scores.n_current
    ends = np.concatenate([np.arange(min(n_sink, n)), np.arange(max(0, n - window), n)])
    return np.union1d(ends, scores.protected).astype(np.int32)


def scaled_layer(depth: float, n_layer: int) -> int:
    """The layer at this share of the depth; not the last, unless it is the only one."""
    return min(max(1, round(n_layer * depth)), n_layer - 1)


def require_int(value: object, name: str, at_least: int) -> None:
    """Raises OptionError unless value is an integer of at least at_least."""
    valid = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= at_least
    require(bool(valid), name, f"an integer of at least {at_least}", value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether value is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require_share(value: object, name: str, *, one: bool = False) -> None:
    """Raises OptionError unless value is a number in [0, 1), or in [0, 1] if `one` is allowed."""
    valid = is_number(value) and 0 <= value <= 1
    require(valid and (one or value != 1), name, f"a share in [0, 1{']' if one else ')'}", value)


def require_layer(value: int | None, name: str, prompt: Prompt) -> None:
    """Raises OptionError unless value is None or a layer that a policy is asked about."""
    layers = prompt.full_layers or range(prompt.n_layer)
    last = max(layers)
    where = " (deeper ones attend to a sliding window)" if last < prompt.n_layer - 1 else ""
    require(value is None or value <= last, name, f"a layer up to {last} of this model{where}", value)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raises OptionError unless the condition holds."""
    if not condition:
        raise OptionError(f"{name}: expected {expected}, got {value!r}")
