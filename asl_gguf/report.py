"""What happened to a prompt, and how fast its answer was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


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
    """where the policy selected, the last layer that saw all tokens; None: it selected nowhere"""
    selected: tuple[int, ...] = ()
    """prompt tokens that the deepest layers saw, where tokens were dropped"""
    rows_by_layer: tuple[int, ...] = ()
    """K/V rows that each layer of the decode context holds of the prompt"""
    sliding_layers: tuple[int, ...] = ()
    """layers that keep what they remember by themselves, pruned or not: a sliding window, a recurrent state, or K/V of an
    earlier layer"""
    rows_only: bool = False
    """K/V rows were dropped, and no layer ran over fewer tokens: recurrent states of this model decay by position"""
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
    state_bytes: int = 0
    """recurrent states of a hybrid model, whatever the length of the prompt; not among the other bytes"""
    kv_bytes_prefill_peak: int = 0
    """KV buffers of the prefill context, released since"""
    n_dequantised: int = 0
    """weight matrices expanded to F16 during the prefill"""
    full_kv_bytes: int = 0
    """host memory of the K/V of all tokens that asl_full_kv keeps"""
    reused_tokens: int = 0
    """tokens at the start of the prompt that were in the cache already"""
    turns: tuple[tuple[int, int], ...] = ()
    """(tokens, of these kept) of the prompt that was pruned first, and of each later turn that was pruned over what was
    kept before it"""

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
