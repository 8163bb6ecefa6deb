"""The contract of a policy: what it is told of a prompt, and what it answers. It sees NumPy alone: no model, no engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from .parameters import require, require_int, scaled_layer

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


class LateBudget(Protocol):
    """How many tokens are kept of a prompt, and from which layer on, where that is decided as the prompt is read."""

    n_held: int
    """rows that layers keep until then, at most: `Prompt.n_kept`"""
    n_most: int
    """rows that stay at most, and where no layer selects"""
    n_window: int
    """tokens that the window's size follows (`Policy.window_of`)"""
    spreads: bool
    """once `choose` has answered: see `Decision.spreads`"""
    crowded: bool
    """once `choose` has answered: several places are looked for with few tokens, and a question's own words would take room"""
    n_asking: int
    """then, so many of these words compete with others all the same"""
    n_queries: int
    """newest queries that it wants of the layers it reads, at least; a policy's window may be narrower"""

    def reads(self, layer: int) -> bool:
        """Whether it is shown this layer."""

    def see(self, scores: LayerScores) -> None:
        """The layer has run, before the policy is asked about it. Its queries and keys are there."""

    def choose(self, layer: int, last: int) -> int | None:
        """Asked where the policy would select, up to the layer `last`: tokens to keep, n_most at most.

        Returns:
            None: a deeper layer shall select.
        """


@dataclass(frozen=True)
class Prompt:
    """What a policy knows before the first layer runs."""

    n_tokens: int
    """tokens of the prompt"""
    n_kept: int
    """tokens to keep, window included; less than n_tokens"""
    n_layer: int
    """layers of the model"""
    protected: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """increasing indices of tokens that must be kept"""
    full_layers: tuple[int, ...] = ()
    """the only layers with K/V of the whole prompt, and that a policy is asked about: the others attend to a sliding window,
    hold a state, or attend to K/V of these. Empty: all layers do"""
    late: LateBudget | None = None
    """where n_kept is a limit, and the policy asks where it would select how many tokens stay; None: n_kept stay"""

    @property
    def n_window(self) -> int:
        """Tokens that the window's size follows."""
        return self.n_kept if self.late is None else self.late.n_window

    def require_layer(self, value: int | None, name: str) -> None:
        """Raises OptionError unless value is None or a layer that a policy is asked about."""
        last = max(self.full_layers or range(self.n_layer))
        where = " (deeper ones attend to a sliding window)" if last < self.n_layer - 1 else ""
        require(value is None or value <= last, name, f"a layer up to {last} of this model{where}", value)


@dataclass(frozen=True)
class LayerScores:
    """Attention of the prompt's last tokens (the window) in one layer."""

    layer: int
    """counted from 0"""
    attention: Floats
    """float32 [n_head_kv, n_current]: softmax over the current tokens, summed over the window's queries
    and over the query heads of each KV head; [1, n_current] of an indexer (`Policy.ranks_by`)"""
    window: int
    """number of queries; their tokens are the last columns"""
    protected: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """increasing indices of current tokens that must be kept"""
    queries: Floats | None = None
    """float32 [window, n_head, n_embd_head_k] after RoPE, where the policy needs keys"""
    keys: Floats | None = None
    """float32 [n_current, n_head_kv, n_embd_head_k] after RoPE, where the policy needs them"""

    @property
    def n_current(self) -> int:
        """Tokens that this layer saw."""
        return self.attention.shape[-1]


@dataclass(frozen=True)
class Decision:
    """A policy's answer for one layer. Indices are increasing and refer to the current tokens."""

    rows: Indices | None = None
    """K/V rows of this layer to keep: int32 [k] or, per KV head, [n_head_kv, k]; None: all. No more than in the
    first layer"""
    tokens: Indices | None = None
    """int32 [k]: the only tokens that deeper layers see; None: go on with the current ones"""
    variance: float | None = None
    """rank variance measured at this layer, where the policy measures one"""
    ratio: float | None = None
    """the variance divided by its reference"""
    keep_asking: bool = False
    """with tokens: deeper layers are asked about as well; else they keep all rows they see"""
    spreads: bool = False
    """with tokens: layers before this one keep rows of these tokens, as far as they hold them. Else each keeps its own best"""
    second_pass: bool = False
    """with tokens: run them again from layer 0 as a prompt of their own, and keep all of that"""

    def __post_init__(self) -> None:
        """Lists become arrays where that is possible; `check` says what is wrong with the others."""
        for name in ("rows", "tokens"):
            index = getattr(self, name)
            if isinstance(index, (list, tuple)):
                try:
                    object.__setattr__(self, name, np.asarray(index))
                except (ValueError, OverflowError):
                    continue  # lists of several lengths

    def check(self, policy: str, layer: int, n_current: int, n_head_kv: int) -> None:
        """Raises OptionError for rows or tokens that are no increasing indices of the current tokens.

        Args:
            n_head_kv: of the layer; 0: the model says so when rows are kept.
        """
        for name, index, dimensions in (("rows", self.rows, (1, 2)), ("tokens", self.tokens, (1,))):
            if index is None:
                continue
            try:
                array = np.asarray(index)
            except ValueError:  # lists of several lengths
                array = np.empty(0, dtype=object)
            if array.ndim not in dimensions or array.dtype.kind not in "iu" or not array.size:
                got = f"{array.dtype} {list(array.shape)}"
            elif array.ndim == 2 and n_head_kv not in (0, len(array)):
                got = f"{len(array)} lists of rows for {n_head_kv} heads"
            elif array.min() < 0 or array.max() >= n_current:
                got = f"indices from {array.min()} to {array.max()}"
            elif (np.diff(array.astype(np.int64)) <= 0).any():
                got = "indices that do not increase"
            else:
                continue
            shape = "int32 [k]" if name == "tokens" else "int32 [k] or [n_head_kv, k]"
            raise OptionError(
                f"policy {policy}, layer {layer}: expected {name} as {shape}, increasing indices of {n_current} tokens, got {got}"
            )


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
    drops: ClassVar[bool] = True
    """False: everything is kept, whatever the budget"""

    decides_late: ClassVar[bool] = False
    """whether it serves prompts with a late budget (`Prompt.late`)"""

    scores_kept_rows: ClassVar[bool] = True
    """scores are computed for the rows that are kept, so that asl_guard can judge them; of two passes they never are"""

    ranks_by: ClassVar[Literal["attention", "indexer"]] = "attention"
    """what `LayerScores.attention` is: the window's attention, or what the model's indexer makes of it (sparse attention)"""

    window: int = 32
    """last prompt tokens whose attention is scored; always kept"""

    def __post_init__(self) -> None:
        require_int(self.window, "window", 1)

    @property
    def min_kept(self) -> int:
        """Fewest tokens this policy can keep."""
        return self.window + 1

    @property
    def first_kept(self) -> int:
        """First tokens of a prompt (sinks) that are always kept."""
        return 0

    @property
    def looks_again(self) -> bool:
        """Whether a deeper layer selects where the first one shows that much is needed, on models with known thresholds."""
        return False

    def least_with(self, n_protected: int) -> int:
        """Fewest tokens that hold so many protected ones, the first ones and the whole window."""
        return max(self.min_kept, self.first_kept + self.window + 1) + n_protected

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

    def fewer_rows(
        self, scores: LayerScores, held: Indices | None, n_kept: int, tokens: Indices | None = None
    ) -> Indices | None:
        """Which rows a layer before the selection still keeps, once it is decided that n_kept tokens are kept.

        Args:
            held: the rows that its decision kept.
            tokens: come before others (`Decision.spreads`).

        Returns:
            int32 [k] or [n_head_kv, k], token indices among the held ones; None: all stay.
        """
        return None

    @abstractmethod
    def start(self, prompt: Prompt) -> Observer:
        """Begins a prompt.

        Returns:
            A function that is called with each layer's scores in turn and decides what to keep: until
            it drops tokens, and after that as long as its decisions ask for more. Layers whose scores
            are not needed come with an empty attention array [0, n_current].
        """
