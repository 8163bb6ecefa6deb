"""What happened to a prompt, and how fast its answer was."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field

_ROWS_ONLY = "K/V rows alone: every layer ran over all tokens, and the prefill got no shorter"


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
    """weight matrices packed or expanded to F16 during the prefill"""
    attention: str = ""
    """what computed attention during the prefill, one line: a kernel of our own, or llama.cpp's and why"""
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
        return min(self.kept_tokens, *self._rows_kept, self.prompt_tokens) < self.prompt_tokens

    @property
    def _rows_kept(self) -> list[int]:
        """Rows of each layer whose rows are chosen."""
        return [n for layer, n in enumerate(self.rows_by_layer) if layer not in self.sliding_layers]

    @property
    def prefill_share(self) -> float:
        """Share of a full prefill's token-layers that were computed; 1 where the parent evaluated the prompt."""
        return self.token_layers / (self.prompt_tokens * self.n_layer) if self.token_layers else 1.0

    def to_dict(self) -> dict[str, object]:
        """The fields and `pruned`, as JSON types."""
        return {**asdict(self), "pruned": self.pruned}

    def __str__(self) -> str:
        """One line: what was kept, what it takes beside the full cache of this prompt, and how long it took."""
        return "; ".join(filter(None, (self._kept(), self._memory(), self._time())))

    def _kept(self) -> str:
        if not self.pruned:
            return f"kept all {self.prompt_tokens:,} tokens{f' ({self.reason})' if self.reason else ''}"
        notes = [f"{self.protected_tokens:,} protected"] * bool(self.protected_tokens)
        notes += [_ROWS_ONLY] * self.rows_only + [str(self.reason)] * bool(self.reason)
        note = f" ({'; '.join(notes)})" if notes else ""
        rows = self._rows_kept
        if rows and min(rows) < max(rows):  # a layer that selects is one of many
            return f"kept {min(rows):,} to {max(rows):,} of {self.prompt_tokens:,} tokens by layer{note}"
        layer = "" if self.selection_layer is None else f" at layer {self.selection_layer} of {self.n_layer}"
        return f"kept {self.kept_tokens:,} of {self.prompt_tokens:,} tokens{layer}{note}"

    @property
    def kept_of(self) -> str:
        """Kept tokens of all, or rows by layer where layers keep different numbers."""
        rows = self._rows_kept
        uneven = self.pruned and rows and min(rows) < max(rows)
        return (
            f"{min(rows)} to {max(rows)} of {self.prompt_tokens} by layer"
            if uneven
            else f"{self.kept_tokens} of {self.prompt_tokens}"
        )

    def _memory(self) -> str:
        if not self.kv_bytes_prompt_full:  # a model without K/V
            return ""
        full = _mib(self.kv_bytes_prompt_full)
        states = f" beside {_mib(self.state_bytes)} MiB of states" if self.state_bytes else ""
        return (f"K/V {_mib(self.kv_bytes_prompt)} of {full} MiB" if self.pruned else f"K/V {full} MiB") + states

    def _time(self) -> str:
        if not self.prefill_seconds:
            return ""
        digits = 1 if self.prefill_seconds >= 1 else 2
        return f"first token {self.prefill_seconds:.{digits}f} s"

    def rows(self, speed: DecodeReport | None = None) -> dict[str, str]:
        """What there is to say in more than a line, by name.

        Args:
            speed: of the answer to this prompt.
        """
        n_new = self.prompt_tokens - self.reused_tokens
        rates = [f"{self.prefill_seconds:.2f} s"]
        if self.prefill_seconds > 0:
            rates.append(f"{n_new / self.prefill_seconds:.0f} tokens/s")
        if self.reused_tokens:
            place = "in host memory" if self.token_layers else "in the cache"
            rates.append(f"{self.reused_tokens} tokens were {place}")
        rows = {
            "kept tokens": f"{self.kept_of} ({self.policy}, budget {self.budget_tokens})",
            "selection layer": "-" if self.selection_layer is None else f"{self.selection_layer} of {self.n_layer}",
            "prefill": ", ".join(rates),
            "answer": str(speed) if speed and speed.tokens_per_second else "-",
            "K/V MiB": f"{_mib(self.kv_bytes_prompt)} of {_mib(self.kv_bytes_prompt_full)} for this prompt; "
            f"{_mib(self.kv_bytes)} allocated, with room for answers",
            "attention mass": "-" if self.attention_mass is None else f"{self.attention_mass:.3f}",
        }
        optional = {
            "states MiB": f"{_mib(self.state_bytes)}, recurrent, the same for any prompt" if self.state_bytes else None,
            "rows": _ROWS_ONLY if self.rows_only else None,
            "host MiB": f"{_mib(self.full_kv_bytes)}, K/V of all tokens for the next question"
            if self.full_kv_bytes
            else None,
            "protected tokens": str(self.protected_tokens) if self.protected_tokens else None,
            "budget": self.budget_choice,
            "calibration": self.calibration,
            "note" if self.pruned else "nothing pruned": self.reason,
        }
        return rows | {name: text for name, text in optional.items() if text is not None}

    def lines(self, speed: DecodeReport | None = None) -> list[str]:
        """`rows`, each as a line."""
        return [f"{name:16} {text}" for name, text in self.rows(speed).items()]

    def _repr_html_(self) -> str:
        """A table, for Jupyter."""
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self.rows().items()
        )
        return f"<table><caption>{html.escape(str(self))}</caption>{cells}</table>"


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

    def __str__(self) -> str:
        rate = self.tokens_per_second
        return f"{self.tokens + 1} tokens" + (f", {rate:.1f} tokens/s" if rate else "")


def _mib(n_bytes: int) -> str:
    """Bytes as a number of MiB, with two or more digits that count."""
    mib = n_bytes / 2**20
    return f"{mib:,.0f}" if mib >= 10 else f"{mib:.1f}" if mib >= 1 else f"{mib:.2g}"
