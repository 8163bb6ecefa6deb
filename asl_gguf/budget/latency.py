"""`ttft:TIME`: as many tokens as leave the first token in time, by the speed of this machine's last prefill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..native.bindings import session_info
from ..native.session import Session
from ..report import PrefillReport
from .memory import check_decode_ctx
from .rule import BudgetContext, BudgetRule
from .share import round_cells
from .targets import Target

_FLOOR = 0.05
"""share of a prompt below which no time makes the budget fall"""
_WEIGHT = 0.5
"""of the last prefill in the speed and in the expected selection layer"""
_CLAMP = 8.0
"""largest factor by which one prefill counts as slower or faster than those before it"""


class LatencyRule(BudgetRule):
    """The most tokens, at least a twentieth of the prompt, with which its prefill is predicted to end in time.

    A prefill takes so many seconds a token and layer. The first prompt runs two layers for it, every prefill corrects it.
    Attention makes long prompts slower: one of more than twice the length is measured again. Memory is another question:
    without asl_decode_ctx there are cells for the whole n_ctx.
    """

    def __init__(self, target: Target, context: BudgetContext) -> None:
        self.context = context
        self._target = target
        self._n_layer = 1
        self._speed: float | None = None  # seconds per token and layer
        self._longest = 0  # tokens of the longest prompt that it was measured on
        self._layer: float | None = None  # mean of the selection layers met
        self._measuring = 0.0  # seconds, before the prompt at hand

    @classmethod
    def make(cls, target: Target, context: BudgetContext) -> LatencyRule:
        """Raises OptionError if asl_decode_ctx is too small for the policy and the room."""
        check_decode_ctx(context)
        return cls(target, context)

    @property
    def n_cells(self) -> int:
        return round_cells(self.context.n_ctx if self.context.decode_ctx is None else self.context.decode_ctx)

    def bind(self, info: session_info) -> None:
        self._n_layer = info.n_layer

    def measure(
        self, open_session: Callable[[int], Session], tokens: Sequence[int], begin: Callable[[], None]
    ) -> float:
        self._measuring = 0.0
        if self._never_prunes(len(tokens)) or (self._speed is not None and len(tokens) <= 2 * self._longest):
            return 0.0
        begin()
        started = time.perf_counter()
        self._speed = layer_seconds(open_session(len(tokens)), tokens, self._n_layer) / len(tokens)
        self._longest = len(tokens)
        self._measuring = time.perf_counter() - started
        return self._measuring

    def _never_prunes(self, n_tokens: int) -> bool:
        if not self.context.policy.drops:
            return True
        short = max(self._target.min_prompt, self.context.policy.min_kept)
        return n_tokens <= short and self.context.most_kept(n_tokens, self.n_cells) == n_tokens

    def kept(self, n_tokens: int) -> int:
        if self._never_prunes(n_tokens):
            return n_tokens
        most = self.context.most_kept(n_tokens, self.n_cells)
        least = min(most, max(self.context.policy.min_kept, math.ceil(_FLOOR * n_tokens)))
        if self._speed is None:  # `measure` comes before the prompt that needs more
            return least
        n_token_layers = (self._target.amount - self._measuring) / self._speed
        if n_tokens * self._n_layer <= n_token_layers:
            return most
        whole, deeper = self._layers()
        n_in_time = math.floor((n_token_layers - n_tokens * whole) / deeper) if deeper else 0
        return max(least, min(most, n_tokens - 1, n_in_time))

    def _layers(self) -> tuple[int, int]:
        """Layers that are expected to run over the whole prompt, and over its kept tokens."""
        first = self.context.policy.first_selection(self._n_layer) if self._layer is None else math.ceil(self._layer)
        layer = self._n_layer - 1 if first is None else first
        return layer + 1, self._n_layer if self.context.policy.two_pass else self._n_layer - layer - 1

    def _predict(self, n_tokens: int, n_kept: int) -> float:
        """Seconds of a prefill without the measuring before it."""
        whole, deeper = self._layers()
        n_token_layers = n_tokens * whole + n_kept * deeper if n_kept < n_tokens else n_tokens * self._n_layer
        return (self._speed or 0.0) * n_token_layers

    def extends(self, n_new: int, n_held: int) -> bool:
        """Appends where that is in time, or at least sooner than a pruned prefill of everything."""
        if self._speed is None:
            return n_new <= n_held
        n_tokens = n_held + n_new
        anew = self._predict(n_tokens, self.kept(n_tokens))
        return self._predict(n_new, n_new) <= max(self._target.amount, anew)

    def with_protected(self, n_kept: int, n_tokens: int, n_protected: int) -> int:
        """No time drops protected tokens."""
        return min(n_tokens, max(n_kept, self.context.policy.least_with(n_protected))) if n_protected else n_kept

    def annotate(self, report: PrefillReport) -> PrefillReport:
        choice = self._choice(report)
        if report.token_layers:
            self._learn(report)
            if self._measuring:
                seconds = {"measuring": self._measuring, **report.seconds}
                report = replace(report, prefill_seconds=report.prefill_seconds + self._measuring, seconds=seconds)
        self._measuring = 0.0
        return replace(report, budget_choice=choice)

    def _choice(self, report: PrefillReport) -> str:
        """Before anything is learnt from the report."""
        n_tokens, goal = report.prompt_tokens, self._target.value
        n_kept = report.guard_attempts[0][0] if report.guard_attempts else report.budget_tokens
        if self._never_prunes(n_tokens):
            why = "the policy drops nothing" if not self.context.policy.drops else "the prompt is short"
            return f"{goal}: all {n_tokens:,} tokens, {why}"
        seconds = self._predict(n_tokens, n_kept) + self._measuring
        speed = f"{1e6 * (self._speed or 0.0):,.1f} us per token and layer"
        if n_kept == n_tokens:
            return f"{goal}: {_seconds(seconds)} predicted for all {n_tokens:,} tokens ({speed})"
        source = "the policy's first" if self._layer is None else "of earlier prompts"
        details = f"selection layer {self._layers()[0] - 1}, {source}; {speed}"
        reach = "out of reach, " if seconds > self._target.amount else ""
        return f"{goal}: {reach}{_seconds(seconds)} predicted for {n_kept:,} of {n_tokens:,} tokens ({details})"

    def _learn(self, report: PrefillReport) -> None:
        """Notes the speed of a prefill, and where it selected."""
        found = report.prefill_seconds / report.token_layers
        if self._speed is None or report.prompt_tokens > 2 * self._longest:
            self._speed = found
        else:
            self._speed *= min(max(found / self._speed, 1 / _CLAMP), _CLAMP) ** _WEIGHT
        self._longest = max(self._longest, report.prompt_tokens)
        if report.pruned:
            layer = self._n_layer - 1 if report.selection_layer is None else report.selection_layer
            self._layer = layer if self._layer is None else self._layer + _WEIGHT * (layer - self._layer)


def layer_seconds(session: Session, tokens: Sequence[int], n_layer: int) -> float:
    """Seconds of one layer over these tokens, the second one: the first meets buffers and threads that are not there yet."""
    session.begin(tokens, 1)
    try:
        for _ in range(min(2, n_layer)):
            begun = time.perf_counter()
            session.run(1, False)
        return time.perf_counter() - begun
    finally:
        session.abort()


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
