"""`ttft:TIME`: as many tokens as a prefill of a given time can take through the layers above the selection layer."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..native.bindings import session_info
from ..native.session import Session
from ..policies import Full, Policy
from ..report import PrefillReport
from .memory import check_decode_ctx
from .rule import BudgetContext, BudgetRule
from .share import round_cells
from .targets import Target

_FLOOR = 0.05
"""share of a prompt below which no time makes the budget fall"""
_SHORT = 8
"""the second measurement has this part of the prompt's tokens: what deeper layers may see"""
_WEIGHT = 0.5
"""of the last prefill in the correction, and of its selection layer in the expected one"""
_CLAMP = 8.0
"""largest factor by which one prefill counts as slower or faster than predicted"""

Pass = tuple[float, int]
"""(tokens, layers that see them)"""


@dataclass(frozen=True)
class Measured:
    """Seconds of the start of a prefill, over some number of tokens."""

    begin: float
    first: float
    """the first layer, which meets buffers and threads that are not there yet: so does every prompt, once"""
    layer: float
    """the next one, which is like those that follow; the first where there is no other"""

    @property
    def total(self) -> float:
        return self.begin + self.first + self.layer


class Speed:
    """Seconds of a prefill.

    Overhead, for each token of the prompt what its first layer takes more than others, and for each layer that sees n
    tokens a * n + b * n * (n + 1) / 2. The model's last layer computes K/V alone for all but a prompt's last chunk: where
    nothing was dropped before it, that chunk is all that counts. (Where tokens were dropped, it is one layer over few
    tokens, and taken to be like the others: fewer kept tokens never take longer then.)
    """

    def __init__(self) -> None:
        self.longest = 0
        """tokens of the longest prompt that was measured"""
        self._overhead = self._first_per_token = self._per_token = self._per_pair = 0.0
        self._correction = 1.0
        self._chunks: Mapping[str, int] = {}

    def measure(self, n_tokens: int, layers: Callable[[int], Measured], chunks: Mapping[str, int]) -> float:
        """Takes the speed from the first layers over the prompt, and over the start of it.

        Args:
            layers: runs them over n tokens.
            chunks: n_batch and n_ubatch.

        Returns:
            the seconds this took
        """
        short, long = max(1, n_tokens // _SHORT), n_tokens
        # the first use of threads and weights is not the usual one: it counts as spent alone
        runs = [layers(min(short, 32)), layers(short), layers(long)]
        at_short, at_long = runs[1].layer, runs[2].layer
        self._overhead = runs[2].begin
        # noise must make none of them negative
        self._first_per_token = max(0.0, runs[2].first - at_long) / long
        slope = (at_long / long - at_short / short) / max(1, long - short) * 2
        self._per_pair = min(max(0.0, slope), at_long / _pairs(long))
        self._per_token = max(0.0, at_long - self._per_pair * _pairs(long)) / long
        self._correction = 1.0
        self._chunks = chunks
        self.longest = n_tokens
        return sum(run.total for run in runs)

    def seconds(self, passes: Sequence[Pass]) -> float:
        """Of a prefill that consists of these."""
        layers = sum(n_layers * self._layer(n) for n, n_layers in passes)
        n_tokens = passes[0][0]
        if len(passes) == 1:
            n_chunk = _last_chunk(n_tokens, self._chunks)
            layers -= self._layer(n_tokens) - self._layer(n_chunk, n_tokens - n_chunk)
        return self._correction * (self._overhead + self._first_per_token * n_tokens + layers)

    def appended(self, n_tokens: int, n_held: int, n_layer: int) -> float:
        """Of n_tokens that llama.cpp evaluates after n_held tokens that are in the cache."""
        first = self._first_per_token * n_tokens
        return self._correction * (self._overhead + first + n_layer * self._layer(n_tokens, n_held))

    def _layer(self, n_tokens: float, n_held: float = 0) -> float:
        """Of one layer that runs n_tokens, before correction; they see n_held others."""
        return self._per_token * n_tokens + self._per_pair * (n_tokens * n_held + _pairs(n_tokens))

    def correct(self, predicted: float, measured: float) -> None:
        """After a prefill whose seconds were predicted from what it did."""
        if predicted <= 0:  # nothing was measured yet
            return
        factor = min(max(measured / predicted, 1 / _CLAMP), _CLAMP)
        self._correction *= factor**_WEIGHT


def _last_chunk(n_tokens: float, chunks: Mapping[str, int]) -> float:
    """Tokens of the last chunk of a prompt, which is cut into n_ubatch tokens of every n_batch."""
    for name in ("n_batch", "n_ubatch"):
        size = chunks.get(name, n_tokens)
        n_tokens = n_tokens % size or min(size, n_tokens) if n_tokens else 0
    return n_tokens


def _pairs(n_tokens: float) -> float:
    return n_tokens * (n_tokens + 1) / 2


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def measure_layers(session: Session, tokens: Sequence[int], policy: Policy, n_layer: int) -> Measured:
    """Begins a prompt and runs its first two layers as the policy wants them. The decode context is left empty."""
    times = [time.perf_counter()]
    session.begin(tokens, policy.window)
    times.append(time.perf_counter())
    try:
        window = policy.window_of(len(tokens), len(tokens))
        session.set_window(window, policy.weights_of(window))
        for layer in range(min(2, n_layer)):
            session.run(1, policy.needs_scores(layer, n_layer) or policy.needs_keys(layer, n_layer))
            times.append(time.perf_counter())
    finally:
        session.abort()
    seconds = [end - start for start, end in pairwise(times)]
    return Measured(seconds[0], seconds[1], seconds[-1])


class LatencyRule(BudgetRule):
    """The most tokens, at least a twentieth of the prompt, with which its prefill is predicted to end in time.

    Memory is another question: without asl_decode_ctx there are cells for the whole n_ctx.
    """

    def __init__(self, target: Target, context: BudgetContext) -> None:
        self._target = target
        self.context = context
        self._n_layer = 1
        self._speed = Speed()
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

    def measure(self, session: Session, tokens: Sequence[int], begin: Callable[[], None]) -> float:
        self._measuring = 0.0
        # what was measured holds for prompts of up to twice the length
        if self._never_prunes(len(tokens)) or len(tokens) <= 2 * self._speed.longest:
            return 0.0
        begin()
        policy, n_layer = self.context.policy, self._n_layer
        self._measuring = self._speed.measure(
            len(tokens), lambda n: measure_layers(session, tokens[:n], policy, n_layer), session.chunks
        )
        return self._measuring

    def _never_prunes(self, n_tokens: int) -> bool:
        if isinstance(self.context.policy, Full):
            return True
        most = self.context.most_kept(n_tokens, self.n_cells)
        return most == n_tokens and n_tokens <= max(self._target.min_prompt, self.context.policy.min_kept)

    def kept(self, n_tokens: int) -> int:
        if self._never_prunes(n_tokens):
            return n_tokens
        most = self.context.most_kept(n_tokens, self.n_cells)
        least = min(most, max(self.context.policy.min_kept, math.ceil(_FLOOR * n_tokens)))
        if not self._speed.longest:  # `measure` comes before the prompt that needs more
            return least
        if most == n_tokens and self._predict(n_tokens, n_tokens) <= self._seconds_left:
            return most
        candidates = range(least, min(most, n_tokens - 1) + 1)
        n_in_time = bisect_right(candidates, self._seconds_left, key=lambda n_kept: self._predict(n_tokens, n_kept))
        return least + max(0, n_in_time - 1)

    @property
    def _seconds_left(self) -> float:
        return self._target.amount - self._measuring

    def _predict(self, n_tokens: int, n_kept: int) -> float:
        """Seconds of a prefill without the measuring before it."""
        return self._speed.seconds(self._passes(n_tokens, n_kept, self._expected_layer()))

    def _passes(self, n_tokens: int, n_kept: float, layer: int, two: bool | None = None) -> list[Pass]:
        if n_kept >= n_tokens:
            return [(n_tokens, self._n_layer)]
        two = self.context.policy.two_pass if two is None else two
        return [(n_tokens, layer + 1), (n_kept, self._n_layer if two else self._n_layer - layer - 1)]

    def _expected_layer(self) -> int:
        if self._layer is not None:
            return math.ceil(self._layer)
        first = self.context.policy.first_selection(self._n_layer)
        return self._n_layer - 1 if first is None else first

    def extends(self, n_new: int, n_held: int) -> bool:
        """In time, or at least sooner than a pruned prefill of everything."""
        if not self._speed.longest:
            return n_new <= n_held
        n_tokens = n_held + n_new
        anew = self._predict(n_tokens, self.kept(n_tokens))
        return self._speed.appended(n_new, n_held, self._n_layer) <= max(self._target.amount, anew)

    def with_protected(self, n_kept: int, n_tokens: int, n_protected: int) -> int:
        """No time drops protected tokens."""
        policy = self.context.policy
        # a budget that holds them may have the whole window, where a small one shrinks it
        least = max(policy.min_kept, getattr(policy, "n_sink", 0) + policy.window + 1)
        return min(n_tokens, max(n_kept, least + n_protected)) if n_protected else n_kept

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
        n_tokens = report.prompt_tokens
        n_kept = report.guard_attempts[0][0] if report.guard_attempts else report.budget_tokens
        goal = self._target.value
        if self._never_prunes(n_tokens):
            why = "the policy drops nothing" if isinstance(self.context.policy, Full) else "the prompt is short"
            return f"{goal}: all {n_tokens:,} tokens, {why}"
        seconds = self._predict(n_tokens, n_kept)
        n_token_layers = sum(n * n_layers for n, n_layers in self._passes(n_tokens, n_kept, self._expected_layer()))
        speed = f"{1e6 * seconds / n_token_layers:,.0f} us per token and layer"
        seconds += self._measuring
        if n_kept == n_tokens:
            return f"{goal}: {_seconds(seconds)} predicted for all {n_tokens:,} tokens ({speed})"
        source = "the policy's first" if self._layer is None else "of earlier prompts"
        details = f"selection layer {self._expected_layer()}, {source}; {speed}"
        reach = "out of reach, " if seconds > self._target.amount else ""
        return f"{goal}: {reach}{_seconds(seconds)} predicted for {n_kept:,} of {n_tokens:,} tokens ({details})"

    def _learn(self, report: PrefillReport) -> None:
        """From what a prefill did: its speed, and where it selected."""
        last = self._n_layer - 1
        layer = last if report.selection_layer is None else report.selection_layer
        two = report.passes == 2
        n_deeper = self._n_layer if two else last - layer
        # the mean, where the layers above see different numbers
        n_kept = (report.token_layers - report.prompt_tokens * (layer + 1)) / n_deeper if n_deeper else 0
        passes = self._passes(report.prompt_tokens, n_kept, layer, two)
        self._speed.correct(self._speed.seconds(passes), report.prefill_seconds)
        if report.pruned:
            self._layer = layer if self._layer is None else self._layer + _WEIGHT * (layer - self._layer)
