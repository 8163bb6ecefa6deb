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
    protected: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """increasing indices of tokens that must be kept"""
    full_layers: tuple[int, ...] = ()
    """the only layers that attend to the whole prompt, and that a policy is asked about: the others attend to a sliding
    window. Empty: all layers do"""


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
    more: bool = False
    """with tokens: deeper layers are asked about as well; else they keep all rows they see"""
    restart: bool = False
    """with tokens: run them again from layer 0 as a prompt of their own, and keep all of that"""


@dataclass(frozen=True)
class PrefillReport:
    """What happened to the prompt of the last completion."""

    prompt_tokens: int
    kept_tokens: int
    """prompt tokens whose K/V the decode context holds: the most that any layer does"""
    policy: str
    budget_tokens: int
    """tokens the budget allows for this prompt"""
    reason: str | None = None
    """why nothing was pruned, or why it was done again; None otherwise"""
    budget_choice: str | None = None
    """what a budget written as a goal (`fit:`, `ttft:`) chose for this prompt, and why; None for other budgets, and where
    the cache had the start of the prompt"""
    selection_layer: int | None = None
    """last layer that saw all tokens; None: every layer did"""
    selected: tuple[int, ...] = ()
    """prompt tokens that the deepest layers saw, where tokens were dropped"""
    rows_by_layer: tuple[int, ...] = ()
    """K/V rows that each layer of the decode context holds of the prompt"""
    sliding_layers: tuple[int, ...] = ()
    """layers that attend to a sliding window: they never hold more than it takes, pruned or not"""
    token_layers: int = 0
    """tokens times layers that were computed for the prompt; 0 if the parent evaluated it"""
    passes: int = 1
    """2: the kept tokens ran again as a prompt of their own"""
    n_layer: int = 0
    variance: tuple[tuple[int, float, float], ...] = ()
    """(layer, rank variance, ratio to its reference) of each monitored layer"""
    attention_mass: float | None = None
    """share of the window's attention that falls on kept rows, mean over the layers whose scores were computed"""
    attention_mass_by_layer: tuple[float, ...] = ()
    guard_attempts: tuple[tuple[int, float], ...] = ()
    """(budget in tokens, attention mass) of attempts that asl_guard gave up"""
    protected_tokens: int = 0
    """tokens kept because of asl_protect"""
    calibration: str | None = None
    """the stored calibration that min_layer and tau come from; None: they are the policy's own"""
    prefill_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """prefill_seconds by phase: setup, layers, policy, rows, finish; measuring before them, for a `ttft:` budget"""
    kv_bytes: int = 0
    """KV buffers allocated now: those of the decode context"""
    kv_bytes_resident: int = 0
    """physical memory that they took when the prompt was prefilled: on Linux and CPUs, cells take pages once they are
    written, and layers that keep fewer rows take fewer"""
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
    full_kv_bytes: int = 0
    """host memory of the K/V of all tokens that asl_full_kv keeps"""
    reused_tokens: int = 0
    """tokens at the start of the prompt that were in the cache already"""

    @property
    def pruned(self) -> bool:
        """Whether any K/V of the prompt was dropped."""
        rows = [n for layer, n in enumerate(self.rows_by_layer) if layer not in self.sliding_layers]
        return min(self.kept_tokens, *rows, self.prompt_tokens) < self.prompt_tokens

    @property
    def prefill_share(self) -> float:
        """Share of a full prefill's token-layers that were computed; 1 where the parent evaluated the prompt."""
        return self.token_layers / (self.prompt_tokens * self.n_layer) if self.token_layers else 1.0

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
