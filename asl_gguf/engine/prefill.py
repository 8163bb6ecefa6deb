"""Prefill, select, hand over: one prompt through its layers under a policy."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import AttentionMassError, ContextFullError, OptionError, PromptError
from ..policies import Full, Policy
from ..policies.contract import Decision, Floats, Indices, LateBudget, LayerScores, Prompt
from ..report import PrefillReport
from .late import HeldRows
from .layers import Layers, drained

_END = object()


class _Trace:
    """What is measured while a prompt runs."""

    def __init__(self, n_tokens: int) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.variance: list[tuple[int, float, float]] = []
        self.attention_mass: list[float] = []
        self.selection_layer: int | None = None
        self.rows: list[int] = []
        self.passes = 1
        self.by_attention = True
        self.n_kept = n_tokens
        self.token_layers = 0
        self.n_dequantised = self.kv_bytes_peak = 0
        self.current = np.arange(n_tokens, dtype=np.int32)

    def slices(self, name: str, work: Iterator[None]) -> Iterator[None]:
        """The slices of this work, their time counted as a phase; what happens between them is not."""
        while True:
            with self.phase(name):
                if next(work, _END) is _END:
                    return
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    def add(self, scores: LayerScores, decision: Decision) -> None:
        if decision.variance is not None:
            self.variance.append((scores.layer, decision.variance, decision.ratio or 0.0))
        if scores.attention.size and self.by_attention and not decision.second_pass:
            self.attention_mass.append(attention_mass(scores.attention, decision.rows))

    def check(self, guard: float) -> None:
        """Raises AttentionMassError if kept rows hold too little so far."""
        if self.attention_mass and (mass := float(np.mean(self.attention_mass))) < guard:
            raise AttentionMassError(mass, guard)

    def shrink(self, held: HeldRows, n_kept: int, tokens: Indices | None = None) -> None:
        """The budget was decided: layers hold fewer rows than they did."""
        self.n_kept = n_kept
        left = held.shrink(n_kept, tokens)
        self.rows = [n_rows for n_rows, _ in left]
        self.attention_mass = [
            attention_mass(held.attention(place).attention, rows) for place, (_, rows) in enumerate(left)
        ]

    def drop(self, layer: int, tokens: Indices) -> None:
        """Only these of the current tokens go on."""
        self.current = self.current[tokens]
        self.select(layer)

    def select(self, layer: int) -> None:
        """The policy chose tokens here, if it did not before."""
        self.selection_layer = layer if self.selection_layer is None else self.selection_layer

    def rows_by_layer(self, sliding: Sequence[bool], n_sliding: int) -> tuple[int, ...]:
        """Rows of every layer; those that were not asked about keep what they see, sliding ones n_sliding."""
        asked = iter(self.rows)
        return tuple(n_sliding if slides else next(asked, self.current.size) for slides in sliding)


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


def prefill(layers: Layers, tokens: Sequence[int], policy: Policy, n_kept: int, **options: Any) -> PrefillReport:
    """`prefill_slices` without a pause."""
    return drained(prefill_slices(layers, tokens, policy, n_kept, **options))


def prefill_slices(
    layers: Layers,
    tokens: Sequence[int],
    policy: Policy,
    n_kept: int,
    *,
    reason: str | None = None,
    protected: Indices | None = None,
    always_ask: bool = False,
    guard: float | None = None,
    late: LateBudget | None = None,
) -> Generator[None, None, PrefillReport]:
    """Runs a prompt layer by layer and leaves the decode context ready to sample from.

    It yields between slices, each at most one chunk of one layer. Closing the generator ends the prefill.

    Args:
        layers: of the decode context.
        tokens: token ids of the whole prompt.
        policy: decides what to keep; not asked if everything is kept.
        n_kept: tokens to keep, window included.
        reason: why nothing is to be pruned, for the report.
        protected: int32, increasing indices of tokens that are kept whatever their scores.
        always_ask: ask the policy even if n_kept spares every token (of a prompt longer than the policy's min_kept).
        guard: least mean share of the window's attention that kept rows must hold, judged from a third of the depth on.
        late: decides where the policy selects how many tokens are kept, n_kept at most.

    Raises:
        PromptError: there are no tokens.
        OptionError: n_kept is below what the policy can keep or what is protected, or a token id is none of the
            model's.
        ContextFullError: the decode context has fewer cells than rows are kept.
        PrefillCancelled: the progress callback returned False.
        AttentionMassError: the guard was not met.
    """
    info = layers.info()
    prompt = replace(_check(info.n_cells, layers.sliding, len(tokens), policy, n_kept, protected), late=late)
    asked = prompt.n_kept < prompt.n_tokens or (always_ask and prompt.n_tokens > policy.min_kept)
    trace = _Trace(prompt.n_tokens)
    trace.by_attention = policy.ranks_by == "attention"
    work = _run(layers, tokens, policy if asked else Full(window=policy.window), prompt, trace, guard)
    started, paused = time.perf_counter(), 0.0
    try:
        for _ in work:
            left = time.perf_counter()
            yield
            paused += time.perf_counter() - left
    finally:
        work.close()
    seconds = time.perf_counter() - started - paused
    return replace(_report(layers, policy, prompt, trace), reason=reason, prefill_seconds=seconds)


def _run(
    layers: Layers, tokens: Sequence[int], policy: Policy, prompt: Prompt, trace: _Trace, guard: float | None
) -> Generator[None, None, None]:
    with trace.phase("setup"):
        layers.rank_by(policy.ranks_by)
        layers.begin(tokens, min(policy.window, len(tokens)))
    try:
        yield  # a context for the whole prompt was made
        if (yield from _run_layers(layers, policy, prompt, trace, guard)):
            _begin_again(layers, tokens, trace)
        info = layers.info()
        trace.n_dequantised, trace.kv_bytes_peak = info.n_dequantised, info.kv_bytes_prefill_peak
        trace.token_layers += (info.n_layer - info.next_layer) * trace.current.size
        yield from trace.slices("finish", layers.finishing())
    except BaseException:
        layers.abort()
        raise


def _report(layers: Layers, policy: Policy, prompt: Prompt, trace: _Trace) -> PrefillReport:
    info, n_tokens = layers.info(), prompt.n_tokens
    rows = trace.rows_by_layer(layers.sliding, info.n_cells_sliding_used)
    full, slid = ([n for n, slides in zip(rows, layers.sliding) if slides is kind] for kind in (False, True))
    bytes_full = info.kv_bytes_cell - info.kv_bytes_cell_sliding
    bytes_prompt = sum(full) * bytes_full / len(full) + max(slid, default=0) * info.kv_bytes_cell_sliding
    mass = tuple(trace.attention_mass)
    return PrefillReport(
        prompt_tokens=n_tokens,
        kept_tokens=max(full),
        policy=policy.name,
        budget_tokens=prompt.n_kept if prompt.late is None else trace.n_kept,
        selection_layer=trace.selection_layer,
        selected=tuple(trace.current.tolist()) if trace.current.size < n_tokens else (),
        rows_by_layer=rows,
        sliding_layers=tuple(layer for layer, slides in enumerate(layers.sliding) if slides),
        rows_only=prompt.n_kept < n_tokens and not layers.drops_tokens and trace.passes == 1,
        state_bytes=layers.state_bytes,
        token_layers=trace.token_layers,
        passes=trace.passes,
        protected_tokens=prompt.protected.size,
        n_layer=info.n_layer,
        variance=tuple(trace.variance),
        attention_mass=float(np.mean(mass)) if mass else None,
        attention_mass_by_layer=mass,
        seconds=dict(trace.seconds),
        kv_bytes=info.kv_bytes_decode,
        kv_bytes_prompt=round(bytes_prompt),
        kv_bytes_prompt_full=n_tokens * info.kv_bytes_cell,
        kv_bytes_prefill_peak=trace.kv_bytes_peak,
        n_dequantised=trace.n_dequantised,
        attention=info.attention.decode(),
    )


def _check(
    n_cells: int,
    sliding: Sequence[bool],
    n_tokens: int,
    policy: Policy,
    n_kept: int,
    protected: Indices | None,
) -> Prompt:
    """The prompt as its policy sees it, checked against policy and decode context."""
    if n_tokens == 0:
        raise PromptError("expected at least one token, got an empty prompt")
    protected = np.empty(0, dtype=np.int32) if protected is None else protected
    if protected.size and not (np.all(np.diff(protected) > 0) and 0 <= protected[0] and protected[-1] < n_tokens):
        raise OptionError(f"protected: expected increasing indices from 0 to {n_tokens - 1}, got {protected}")
    window = min(policy.window, policy.window_of(n_tokens, n_kept))
    fixed = np.union1d(protected, np.r_[0 : min(policy.first_kept, n_tokens), n_tokens - window : n_tokens])
    at_least = max(policy.min_kept, fixed.size if protected.size else 0)
    if at_least > n_kept and n_kept < n_tokens:
        raise OptionError(
            f"n_kept: expected at least {at_least} tokens for this policy"
            f"{f' and {protected.size} protected tokens' if protected.size else ''}, or all {n_tokens}, got {n_kept}; "
            f"raise asl_budget{' or protect less' if protected.size else ''}"
        )
    n_kept = min(n_kept, n_tokens)
    n_rows = policy.max_rows(n_tokens, n_kept) if n_kept < n_tokens else n_tokens
    if n_rows > n_cells:
        raise ContextFullError(
            f"expected at most {n_cells} tokens to keep (cells of the decode context), got {n_rows}; "
            "raise asl_decode_ctx or lower asl_budget"
        )
    full_layers = tuple(layer for layer, slides in enumerate(sliding) if not slides) if any(sliding) else ()
    return Prompt(n_tokens, n_kept, len(sliding), protected, full_layers)


def _run_layers(
    layers: Layers, policy: Policy, prompt: Prompt, trace: _Trace, guard: float | None
) -> Generator[None, None, bool]:
    """Layer after layer, as long as the policy has to be asked. Returns whether the kept tokens start again."""
    observe = _observer(policy, prompt)
    held = HeldRows(layers, policy) if prompt.late is not None and policy.decides_late else None
    trace.n_kept = prompt.n_kept
    n_waiting = 0  # layers that nobody looks at run together with the next one
    for group in _layers_to_ask(layers.sliding, prompt.n_layer):
        layer = group[-1]
        n_waiting += len(group)
        read = prompt.late is not None and prompt.late.reads(layer)
        with_keys = read or any(policy.needs_keys(one, prompt.n_layer) for one in group)
        with_scores = any(policy.needs_scores(one, prompt.n_layer) for one in group) or with_keys
        if not (with_scores or policy.keeps_rows(layer, prompt.n_layer)) and layer < prompt.n_layer - 1:
            continue
        window = policy.window_of(trace.current.size, prompt.n_window)
        _set_window(layers, policy, window, prompt.late.n_queries if prompt.late is not None and read else 0)
        if trace.selection_layer is None and (first := policy.first_selection(prompt.n_layer)) is not None:
            layers.expect(0 if policy.two_pass else prompt.n_kept, max(first, layer))
        yield  # a selection before takes as long as a chunk
        yield from trace.slices("layers", layers.running(n_waiting, with_scores))
        trace.token_layers += n_waiting * trace.current.size
        n_waiting = 0
        with trace.phase("policy"):
            scores = _read_scores(layers, layer, window, prompt, trace.current, with_scores, with_keys)
            if prompt.late is not None and read:
                prompt.late.see(scores)
                layers.set_window(window, policy.weights_of(window))  # tokens may be dropped, but none of the window
            decision = observe(scores)
            trace.add(scores, decision)
        if guard is not None and layer >= prompt.n_layer // 3:
            trace.check(guard)
        if decision.second_pass and decision.tokens is not None:
            trace.drop(layer, decision.tokens)
            return True
        if policy.keeps_rows(layer, prompt.n_layer):
            held = _keep_rows(layers, held, trace, scores, decision)
        if decision.tokens is None:
            continue
        if layer == prompt.n_layer - 1:  # no layer is left that could do without the other tokens
            trace.select(layer)
            continue
        if not layers.drops_tokens:
            if decision.keep_asking:
                continue
            yield from _keep_rows_of(layers, decision.tokens, layer + 1, prompt.n_layer, trace)
            return False
        layers.keep_tokens(decision.tokens)
        trace.drop(layer, decision.tokens)
        if not decision.keep_asking:
            return False
    if held is not None and prompt.late is not None:  # no layer selected
        trace.shrink(held, prompt.late.n_most)
    return False


def _keep_rows(
    layers: Layers, held: HeldRows | None, trace: _Trace, scores: LayerScores, decision: Decision
) -> HeldRows | None:
    """The rows that the policy keeps of the layer that ran last. Returns those in excess after it, if any may be."""
    with trace.phase("rows"):
        trace.rows.append(layers.keep_rows(decision.rows))
        if held is None:
            return None
        held.add(scores, decision)
        if decision.tokens is None:
            return held
        trace.shrink(held, decision.tokens.size, decision.tokens if decision.spreads else None)
    return None


def _observer(policy: Policy, prompt: Prompt) -> Callable[[LayerScores], Decision]:
    """What the policy answers of each layer, checked.

    Raises:
        OptionError: it starts with no observer, or that answers with what is no decision about the current tokens.
    """
    observe = policy.start(prompt)
    if not callable(observe):
        raise OptionError(f"policy {policy.name}: expected start to return an observer, got {observe!r:.60}")

    def checked(scores: LayerScores) -> Decision:
        decision = observe(scores)
        if not isinstance(decision, Decision):
            raise OptionError(f"policy {policy.name}, layer {scores.layer}: expected a Decision, got {decision!r:.60}")
        decision.check(policy.name, scores.layer, scores.n_current, scores.attention.shape[0])
        return decision

    return checked


def _keep_rows_of(
    layers: Layers, tokens: Indices, begin: int, n_layer: int, trace: _Trace
) -> Generator[None, None, None]:
    """Layers from `begin` on run over all tokens, and keep rows of these: where tokens cannot be dropped."""
    for layer in range(begin, n_layer):
        yield from trace.slices("layers", layers.running(1, False))
        trace.token_layers += trace.current.size
        if not layers.sliding[layer]:
            with trace.phase("rows"):
                trace.rows.append(layers.keep_rows(tokens))


def _layers_to_ask(sliding: Sequence[bool], n_layer: int) -> Iterator[range]:
    """The layers that a policy is asked about, each with the sliding ones before it: those rank nothing beyond their
    window. Sliding layers after the last of them are left out."""
    begin = 0
    for layer in range(n_layer):
        if not sliding[layer]:
            yield range(begin, layer + 1)
            begin = layer + 1


def _set_window(layers: Layers, policy: Policy, window: int, n_queries: int) -> None:
    """The policy's window; with more queries, if so many are to be read, whose attention does not count."""
    weights = policy.weights_of(window)
    more = min(n_queries, layers.info().n_current) - window
    if more > 0:
        own = np.ones(window, dtype=np.float32) if weights is None else weights
        window, weights = window + more, np.concatenate([np.zeros(more, dtype=np.float32), own])
    layers.set_window(window, weights)


def _read_scores(
    layers: Layers, layer: int, window: int, prompt: Prompt, current: Indices, with_scores: bool, with_keys: bool
) -> LayerScores:
    protected = np.isin(current, prompt.protected) if prompt.protected.size else np.empty(0)
    return LayerScores(
        layer,
        layers.scores() if with_scores else np.empty((0, current.size), dtype=np.float32),
        window,
        np.flatnonzero(protected).astype(np.int32),
        layers.queries() if with_keys else None,
        layers.keys() if with_keys else None,
    )


def _begin_again(layers: Layers, tokens: Sequence[int], trace: _Trace) -> None:
    """A second pass over the kept tokens, at consecutive positions that end where the prompt's end."""
    with trace.phase("setup"):
        layers.abort()
        n_kept = trace.current.size
        layers.begin([tokens[i] for i in trace.current.tolist()], 1, len(tokens) - n_kept)
    trace.passes = 2
    trace.rows.clear()
    trace.attention_mass.clear()  # of rows that were never kept
