"""Prefill, select, hand over: one prompt through a session under a policy."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from .errors import ContextFullError, OptionError, PromptError
from .policies import Full, Policy
from .session import Session
from .types import Decision, Floats, Indices, LayerScores, PrefillReport, Prompt


class _Trace:
    """What is measured while a prompt runs."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.variance: list[tuple[int, float, float]] = []
        self.attention_mass: list[float] = []
        self.selection_layer: int | None = None
        self.kept_tokens = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    def add(self, scores: LayerScores, decision: Decision) -> None:
        if decision.variance is not None:
            self.variance.append((scores.layer, decision.variance, decision.ratio or 0.0))
        if scores.attention.size:
            self.attention_mass.append(attention_mass(scores.attention, decision.rows))


def attention_mass(attention: Floats, rows: Indices | None) -> float:
    """Share of the window's attention in one layer that falls on the kept rows.

    Args:
        attention: float32 [n_head_kv, n].
        rows: int32 [k] or [n_head_kv, k]; None: all.
    """
    if rows is None:
        return 1.0
    per_head = np.broadcast_to(rows, (attention.shape[0], rows.shape[-1]))
    return float(
        np.take_along_axis(attention, per_head, axis=-1).sum(dtype=np.float64) / attention.sum(dtype=np.float64)
    )


def prefill(
    session: Session, tokens: Sequence[int], policy: Policy, n_kept: int, *, reason: str | None = None
) -> PrefillReport:
    """Runs a prompt layer by layer and leaves the decode context ready to sample from.

    Args:
        session: of the decode context.
        tokens: token ids of the whole prompt.
        policy: decides what to keep; not asked if everything is kept.
        n_kept: tokens to keep, window included.
        reason: why nothing is to be pruned, for the report.

    Raises:
        PromptError: there are no tokens.
        OptionError: n_kept is below what the policy can keep, or a token id is none of the model's.
        ContextFullError: the decode context has fewer cells than n_kept.
        PrefillCancelled: the progress callback returned False.
    """
    started = time.perf_counter()
    n_tokens = len(tokens)
    info = session.info()
    if n_tokens == 0:
        raise PromptError("expected at least one token, got an empty prompt")
    if policy.min_kept > n_kept and n_kept < n_tokens:
        raise OptionError(
            f"n_kept: expected at least {policy.min_kept} tokens for this policy, or all {n_tokens}, got {n_kept}"
        )
    n_kept = min(n_kept, n_tokens)
    policy_run: Policy = policy if n_kept < n_tokens else Full(window=policy.window)
    if n_kept > info.n_cells:
        raise ContextFullError(
            f"expected at most {info.n_cells} tokens to keep (cells of the decode context), got {n_kept}; "
            "raise asl_decode_ctx or lower asl_budget"
        )
    trace = _Trace()
    with trace.phase("setup"):
        session.begin(tokens, policy.window)
    try:
        _run_layers(session, policy_run, Prompt(n_tokens, n_kept, info.n_layer), trace)
        n_dequantised, peak = session.info().n_dequantised, session.info().kv_bytes_prefill_peak
        with trace.phase("finish"):
            session.finish()
    except BaseException:
        session.abort()
        raise
    mass = tuple(trace.attention_mass)
    return PrefillReport(
        prompt_tokens=n_tokens,
        kept_tokens=trace.kept_tokens,
        policy=policy.name,
        budget_tokens=n_kept,
        reason=reason,
        selection_layer=trace.selection_layer,
        n_layer=info.n_layer,
        variance=tuple(trace.variance),
        attention_mass=float(np.mean(mass)) if mass else None,
        attention_mass_by_layer=mass,
        prefill_seconds=time.perf_counter() - started,
        seconds=dict(trace.seconds),
        kv_bytes=info.kv_bytes_decode,
        kv_bytes_prompt=trace.kept_tokens * info.kv_bytes_cell,
        kv_bytes_prompt_full=n_tokens * info.kv_bytes_cell,
        kv_bytes_prefill_peak=peak,
        n_dequantised=n_dequantised,
    )


def _run_layers(session: Session, policy: Policy, prompt: Prompt, trace: _Trace) -> None:
    """Layer after layer, until the policy drops tokens or no layer is left."""
    observe = policy.start(prompt)
    for layer in range(prompt.n_layer):
        wanted = policy.needs_scores(layer)
        with trace.phase("layers"):
            session.run(1, wanted)
            attention = session.scores() if wanted else np.empty((0, prompt.n_tokens), dtype=np.float32)
        with trace.phase("policy"):
            scores = LayerScores(layer, attention, min(policy.window, prompt.n_tokens))
            decision = observe(scores)
            trace.add(scores, decision)
        with trace.phase("rows"):
            trace.kept_tokens = session.keep_rows(decision.rows)
        if decision.tokens is not None and layer < prompt.n_layer - 1:
            session.keep_tokens(decision.tokens)
            trace.selection_layer = layer
            return
