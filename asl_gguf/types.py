"""Values that pass between the modules. Frozen: nobody changes what another one handed out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Prompt:
    """What a policy knows before the first layer runs."""

    n_tokens: int
    """tokens of the prompt"""
    n_kept: int
    """tokens to keep, window included; less than n_tokens"""
    n_layer: int
    """layers of the model"""


@dataclass(frozen=True)
class LayerScores:
    """Attention of the prompt's last tokens (the window) in one layer."""

    layer: int
    """counted from 0"""
    attention: Floats
    """float32 [n_head_kv, n_current]: softmax over the current tokens, summed over the window's queries
    and over the query heads of each KV head"""
    window: int
    """number of queries; their tokens are the last columns"""


@dataclass(frozen=True)
class Decision:
    """A policy's answer for one layer. Indices are increasing and refer to the current tokens."""

    rows: Indices | None = None
    """K/V rows of this layer to keep: int32 [n_kept] or, per KV head, [n_head_kv, n_kept]; None: all"""
    tokens: Indices | None = None
    """int32 [n_kept]: the only tokens that deeper layers see; None: go on with the current ones"""
    variance: float | None = None
    """rank variance measured at this layer, where the policy measures one"""
    ratio: float | None = None
    """the variance divided by its reference"""


@dataclass(frozen=True)
class PrefillReport:
    """What happened to the prompt of the last completion."""

    prompt_tokens: int
    kept_tokens: int
    """prompt tokens whose K/V the decode context holds"""
    policy: str
    budget_tokens: int
    """tokens the budget allows for this prompt"""
    reason: str | None = None
    """why nothing was pruned; None if something was"""
    selection_layer: int | None = None
    """last layer that saw all tokens; None: every layer did"""
    n_layer: int = 0
    variance: tuple[tuple[int, float, float], ...] = ()
    """(layer, rank variance, ratio to its reference) of each monitored layer"""
    attention_mass: float | None = None
    """share of the window's attention that falls on kept rows, mean over the layers that saw all tokens"""
    attention_mass_by_layer: tuple[float, ...] = ()
    prefill_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """prefill_seconds by phase: setup, layers, policy, rows, finish"""
    kv_bytes: int = 0
    """KV buffers allocated now: those of the decode context"""
    kv_bytes_full: int = 0
    """KV buffers that a stock context of the same n_ctx and KV type allocates"""
    kv_bytes_prompt: int = 0
    """K/V of the kept tokens"""
    kv_bytes_prompt_full: int = 0
    """K/V of all prompt tokens"""
    kv_bytes_prefill_peak: int = 0
    """KV buffers of the prefill context, released since"""
    n_dequantised: int = 0
    """weight matrices expanded to F16 during the prefill"""
    reused_tokens: int = 0
    """tokens at the start of the prompt that were in the cache already"""

    @property
    def pruned(self) -> bool:
        """Whether any K/V of the prompt was dropped."""
        return self.kept_tokens < self.prompt_tokens

    def to_dict(self) -> dict[str, object]:
        """The fields and `pruned`, as JSON types."""
        return {**asdict(self), "pruned": self.pruned}


@dataclass(frozen=True)
class DecodeReport:
    """Speed of the last answer, its first token left out: that one's logits came with the prefill."""

    tokens: int
    """tokens after the first one"""
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """None if the answer was a single token."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None
