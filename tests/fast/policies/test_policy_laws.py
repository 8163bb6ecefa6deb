"""Laws of every policy in REGISTRY, asked layer by layer as the engine asks. NumPy alone: no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asl_gguf.policies import (
    ASL,
    REGISTRY,
    FastKV,
    Full,
    GemFilter,
    Policy,
    PyramidInfer,
    ScoringPolicy,
    SpanASL,
    SpecPrefill,
    StreamingLLM,
    ranking,
)
from asl_gguf.policies.contract import Decision, Floats, Indices, LayerScores, Prompt
from asl_gguf.policies.scoring import SelectingPolicy

N_HEAD, HEAD_DIM = 4, 4

every_policy = pytest.mark.parametrize("name", REGISTRY)
quick = settings(max_examples=8)


@dataclass(frozen=True)
class Model:
    """Queries and keys of every layer: small whole numbers, so that sums are exact and ties common."""

    queries: Floats
    """[n_layer, n_tokens, n_head, d]"""
    keys: Floats
    """[n_layer, n_tokens, n_head_kv, d]"""

    def heads(self, order: list[int]) -> Model:
        """The same model with its KV heads, and the query heads of each, in another order."""
        n_head_kv = self.keys.shape[2]
        groups = self.queries.reshape(*self.queries.shape[:2], n_head_kv, -1, HEAD_DIM)
        return Model(groups[:, :, order].reshape(self.queries.shape), self.keys[:, :, order])


@dataclass(frozen=True)
class Step:
    """One layer that the policy was asked about."""

    scores: LayerScores
    decision: Decision
    current: Indices
    """token of the prompt behind each current one"""

    @property
    def selects(self) -> bool:
        return self.decision.tokens is not None

    def lists(self) -> Iterator[Indices]:
        """Every list of indices in the decision: rows of each KV head, tokens."""
        if self.decision.rows is not None:
            yield from np.atleast_2d(self.decision.rows)
        if self.decision.tokens is not None:
            yield self.decision.tokens


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt."""

    steps: list[Step]
    rows_by_layer: list[int]
    current: Indices
    """tokens that the deepest layers saw"""
    second_pass: bool = False


def drive(policy: Policy, prompt: Prompt, model: Model) -> Outcome:
    """What engine.prefill does with a policy."""
    observe, current = policy.start(prompt), np.arange(prompt.n_tokens, dtype=np.int32)
    steps: list[Step] = []
    rows: list[int] = []
    for layer in range(prompt.n_layer):
        with_keys = policy.needs_keys(layer, prompt.n_layer)
        with_scores = with_keys or policy.needs_scores(layer, prompt.n_layer)
        if not (with_scores or policy.keeps_rows(layer, prompt.n_layer)) and layer < prompt.n_layer - 1:
            continue
        scores = layer_scores(policy, model, layer, current, prompt, with_scores, with_keys)
        decision = observe(scores)
        steps.append(Step(scores, decision, current))
        if decision.second_pass and decision.tokens is not None:
            current = current[decision.tokens]
            return Outcome(steps, [current.size] * prompt.n_layer, current, second_pass=True)
        rows.append(current.size if decision.rows is None else decision.rows.shape[-1])
        if decision.tokens is not None and layer < prompt.n_layer - 1:
            current = current[decision.tokens]
            if not decision.keep_asking:
                break
    return Outcome(steps, rows + [current.size] * (prompt.n_layer - len(rows)), current)


def layer_scores(
    policy: Policy, model: Model, layer: int, current: Indices, prompt: Prompt, with_scores: bool, with_keys: bool
) -> LayerScores:
    window = policy.window_of(current.size, prompt.n_kept)
    queries, keys = model.queries[layer, current[-window:]], model.keys[layer, current]
    attention = np.empty((0, current.size), dtype=np.float32)
    if with_scores:
        attention = ranking.window_scores(queries, keys, 0.3, policy.weights_of(window))
    kept = np.flatnonzero(np.isin(current, prompt.protected)).astype(np.int32)
    return LayerScores(layer, attention, window, kept, queries if with_keys else None, keys if with_keys else None)


SCORING = {
    "window": st.integers(1, 6),
    "kernel_size": st.sampled_from([1, 3, 7]),
    "n_sink": st.integers(0, 4),
    "normalise_heads": st.booleans(),
    "span_forward": st.integers(0, 5),
    "span_back": st.integers(0, 3),
    "back_room": st.sampled_from([0, 20, 100]),
    "half_life": st.one_of(st.none(), st.floats(0.5, 20)),
}
SHARE = st.floats(0, 0.9)
PARAMETERS: dict[type[Policy], dict[str, st.SearchStrategy]] = {
    ScoringPolicy: SCORING,
    SelectingPolicy: {"evidence_layers": st.integers(1, 4)},
    ASL: {"obs_layers": st.integers(2, 4), "min_depth": SHARE, "tau": st.floats(0, 1)},
    SpanASL: {"window": st.integers(1, 40)},  # which follows the budget from 96 tokens on
    FastKV: {"tsp_depth": SHARE},
    GemFilter: {"window": st.integers(1, 4), "kernel_size": st.sampled_from([1, 3, 5]), "select_depth": SHARE},
    SpecPrefill: {
        "window": st.integers(1, 4),
        "kernel_size": st.sampled_from([1, 3, 13]),
        "chunk_size": st.sampled_from([1, 5, 32]),
        "select_depth": SHARE,
    },
    StreamingLLM: {"window": st.integers(1, 4), "n_sink": st.integers(0, 5)},
    PyramidInfer: {
        "recent_ratio": st.floats(0, 0.5),
        "recent_weight": st.floats(0.5, 2),
        "n_sink": st.integers(0, 4),
        "min_context": st.integers(1, 30),
    },
    Full: {"window": st.integers(1, 6)},
}


@st.composite
def cases(draw: Callable, name: str) -> tuple[Policy, Prompt, Model]:
    """A policy under the name, a prompt that it can prune, and a model of two KV heads: sums of two commute."""
    kind = REGISTRY[name]
    strategies = {
        key: value for base, own in PARAMETERS.items() if issubclass(kind, base) for key, value in own.items()
    }
    policy = kind(**{key: draw(value) for key, value in strategies.items()})
    n_tokens = draw(st.integers(policy.min_kept + 1, policy.min_kept + (300 if kind is SpanASL else 60)))
    n_kept = n_tokens if kind is Full else draw(st.integers(policy.min_kept, n_tokens - 1))
    n_layer = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, keys = (
        rng.integers(-2, 3, (n_layer, n_tokens, heads, HEAD_DIM)).astype(np.float32) for heads in (N_HEAD, 2)
    )
    return policy, Prompt(n_tokens, n_kept, n_layer), Model(queries, keys)


def fixed_of(policy: Policy, n_tokens: int, n_kept: int) -> set[int]:
    """Tokens that the policy keeps of n_tokens whatever their scores."""
    n_sink = getattr(policy, "n_sink", 0)
    window = 1 if isinstance(policy, GemFilter) else policy.window_of(n_tokens, n_kept)
    return {*range(min(n_sink, n_tokens)), *range(n_tokens - window, n_tokens)}


def protect(draw: Callable, policy: Policy, prompt: Prompt) -> Prompt:
    """The same prompt with some tokens protected, so few that sinks and window find room as well."""
    fixed = fixed_of(policy, prompt.n_tokens, prompt.n_kept)
    n_least = min(prompt.n_kept, policy.min_context) if isinstance(policy, PyramidInfer) else prompt.n_kept
    chosen = draw(st.sets(st.integers(0, prompt.n_tokens - 1), max_size=max(0, n_least - len(fixed))))
    return replace(prompt, protected=np.array(sorted(chosen), dtype=np.int32))


@every_policy
@given(data=st.data())
@quick
def test_the_contract(name, data):
    """Indices in order and without duplicates; sinks, window and protected tokens among them."""
    policy, prompt, model = data.draw(cases(name))
    prompt = protect(data.draw, policy, prompt)
    outcome = drive(policy, prompt, model)
    protected = set(prompt.protected.tolist())
    for step in outcome.steps:
        fixed = fixed_of(policy, step.current.size, prompt.n_kept)
        for kept in step.lists():
            assert kept.dtype == np.int32 and kept.tolist() == sorted(set(kept.tolist()))
            assert 0 <= kept[0] and kept[-1] == step.current.size - 1
            assert fixed <= set(kept.tolist())
            assert protected <= set(step.current[kept].tolist())
    assert max(outcome.rows_by_layer) <= policy.max_rows(prompt.n_tokens, prompt.n_kept)
    assert sorted(outcome.rows_by_layer, reverse=True) == outcome.rows_by_layer


@every_policy
@given(data=st.data())
@quick
def test_the_budget(name, data):
    """Exactly; for PyramidInfer, which keeps fewer from layer to layer, on the mean over the layers."""
    policy, prompt, model = data.draw(cases(name))
    prompt = protect(data.draw, policy, prompt)
    outcome = drive(policy, prompt, model)
    n_tokens, n_kept, n_layer = prompt.n_tokens, prompt.n_kept, prompt.n_layer
    if isinstance(policy, Full):
        assert outcome.rows_by_layer == [n_tokens] * n_layer and outcome.current.size == n_tokens
    elif isinstance(policy, PyramidInfer):
        # the first layer sees and keeps all, and none falls below these
        fewest = [n_tokens]
        for _ in range(n_layer - 1):
            recent = max(1, int(fewest[-1] * policy.recent_ratio)) + policy.n_sink
            fewest.append(min(fewest[-1], max(policy.min_context, recent)))
        assert all(rows >= least for rows, least in zip(outcome.rows_by_layer, fewest, strict=True))
        if sum(policy.counts(n_tokens, n_layer, 0.0, 4096.0)) <= n_kept * n_layer:
            assert n_kept * n_layer - 2 * n_layer <= sum(outcome.rows_by_layer) <= n_kept * n_layer
    else:
        assert outcome.rows_by_layer == [n_kept] * n_layer
        assert outcome.current.size == n_kept or not any(
            step.decision.tokens is not None for step in outcome.steps[:-1]
        )


@pytest.mark.parametrize("name", [name for name, kind in REGISTRY.items() if issubclass(kind, SelectingPolicy)])
@given(data=st.data())
@quick
def test_cache_k(name, data):
    """Rows of the layers that see all tokens, and of the deeper ones, in numbers of their own."""
    policy, prompt, model = data.draw(cases(name))
    least = policy.window + policy.n_sink + 1
    cache_k = data.draw(st.one_of(st.just("all"), st.integers(least, max(least, prompt.n_tokens) + 5)))
    policy = replace(policy, cache_k=cache_k)
    outcome = drive(policy, prompt, model)
    n_rows = prompt.n_tokens if cache_k == "all" else cache_k
    if not outcome.second_pass:
        seen = [step.current.size for step in outcome.steps]
        seen += [outcome.current.size] * (prompt.n_layer - len(seen))
        assert outcome.rows_by_layer == [min(n_rows, n) for n in seen]
    assert max(outcome.rows_by_layer) <= policy.max_rows(prompt.n_tokens, prompt.n_kept)
    assert outcome.current.size in (prompt.n_tokens, prompt.n_kept)
    for step, plain in zip(outcome.steps, drive(replace(policy, cache_k="select_k"), prompt, model).steps):
        assert (
            np.array_equal(step.decision.tokens, plain.decision.tokens) or step.decision.tokens is plain.decision.tokens
        )


@every_policy
@given(data=st.data())
@quick
def test_order_of_kv_heads(name, data):
    """It changes no token; rows follow their heads."""
    policy, prompt, model = data.draw(cases(name))
    one, other = drive(policy, prompt, model), drive(policy, prompt, model.heads([1, 0]))
    assert one.current.tolist() == other.current.tolist() and one.rows_by_layer == other.rows_by_layer
    for a, b in zip(one.steps, other.steps, strict=True):
        assert (a.decision.variance, a.decision.ratio) == (b.decision.variance, b.decision.ratio)
        if a.decision.rows is not None:
            order = [1, 0] if a.decision.rows.ndim == 2 else slice(None)
            assert np.array_equal(a.decision.rows[order], b.decision.rows)


def rankings(policy: Policy, prompt: Prompt, step: Step, history: list[Floats]) -> tuple[Floats | None, Floats | None]:
    """What the policy's paper ranks by: for rows [n_head_kv, n] or [1, n], for tokens [n]; None: not known here.

    Args:
        history: scores of the layers before, to which those of this one are added.
    """
    scores, n = step.scores, step.current.size
    if isinstance(policy, StreamingLLM):
        return np.arange(n, dtype=np.float32)[None], None
    if isinstance(policy, PyramidInfer):
        total = scores.attention.sum(axis=0)
        return total[None], total
    if isinstance(policy, GemFilter) and scores.keys is not None:
        heads = scores.queries[-1].reshape(2, -1, HEAD_DIM)
        products = np.einsum("hgd,nhd->n", heads, scores.keys)
        return None, ranking.average_pool(products.astype(np.float32), policy.kernel_size)
    if isinstance(policy, SpecPrefill) and scores.keys is not None:
        history.append(largest_of_heads(policy, scores))
        values = np.max(history, axis=0).mean(axis=0)
        chunks = [values[i : i + policy.chunk_size] for i in range(0, n, policy.chunk_size)]
        return None, np.concatenate([np.full(chunk.size, chunk.mean()) for chunk in chunks]).astype(np.float16)
    if isinstance(policy, ScoringPolicy):
        begin, end = policy.n_sink, n - scores.window
        pooled = ranking.average_pool(scores.attention[:, :end], policy.kernel_size)[:, begin:]
        if policy.normalise_heads:
            pooled = pooled / np.maximum(pooled.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        history.append(pooled.sum(axis=0))
        evidence = np.sum(history[-getattr(policy, "evidence_layers", 1) :], axis=0) if step.selects else history[-1]
        result = []
        for competing in (pooled, evidence):
            ranked = np.zeros((*competing.shape[:-1], n), dtype=np.float32)
            share = policy.back_share_of(prompt.n_kept)
            spanned = ranking.span_maximum(competing, policy.span_back, policy.span_forward, share)
            ranked[..., begin:end] = spanned
            result.append(ranked)
        return result[0], result[1]
    return None, None


def largest_of_heads(policy: SpecPrefill, scores: LayerScores) -> Floats:
    """[w, n]: pooled attention of each query, of the head that has most of it."""
    n_window, n_head, _ = scores.queries.shape
    largest = np.zeros((n_window, scores.n_current), dtype=np.float32)
    for i in range(n_window):
        seen = scores.n_current - n_window + i + 1
        for head in range(n_head):
            keys = scores.keys[:seen, head * scores.keys.shape[1] // n_head]
            weights = np.exp(keys @ scores.queries[i, head] / HEAD_DIM**0.5)
            attention = np.pad(weights / weights.sum(), (0, scores.n_current - seen)).astype(np.float32)
            largest[i] = np.maximum(largest[i], ranking.average_pool(attention, policy.kernel_size))
    return largest


def assert_best(kept: Indices, scores: Floats, fixed: set[int]) -> None:
    won, lost = (set(kept.tolist()) - fixed), set(range(scores.size)) - fixed - set(kept.tolist())
    assert not won or not lost or min(scores[list(won)]) >= max(scores[list(lost)])


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "none"])
@given(data=st.data())
@quick
def test_a_higher_score_never_loses_to_a_lower_one(name, data):
    policy, prompt, model = data.draw(cases(name))
    prompt = protect(data.draw, policy, prompt)
    history: list[Floats] = []
    for step in drive(policy, prompt, model).steps:
        for_rows, for_tokens = rankings(policy, prompt, step, history)
        fixed = fixed_of(policy, step.current.size, prompt.n_kept) | set(step.scores.protected.tolist())
        if step.decision.rows is not None and for_rows is not None:
            for kept, scores in zip(np.atleast_2d(step.decision.rows), for_rows, strict=True):
                assert_best(kept, scores, fixed)
        if step.decision.tokens is not None and for_tokens is not None:
            assert_best(step.decision.tokens, for_tokens, fixed)


@every_policy
@given(data=st.data())
@quick
def test_protecting_what_is_kept_changes_nothing(name, data):
    policy, prompt, model = data.draw(cases(name))
    plain = drive(policy, prompt, model)
    kept = set(range(prompt.n_tokens))
    for step in plain.steps:
        for indices in step.lists():
            kept &= set(step.current[indices].tolist())
    chosen = data.draw(st.sets(st.sampled_from(sorted(kept)), max_size=len(kept)))
    same = drive(policy, replace(prompt, protected=np.array(sorted(chosen), dtype=np.int32)), model)
    assert same.rows_by_layer == plain.rows_by_layer and same.current.tolist() == plain.current.tolist()
    for a, b in zip(plain.steps, same.steps, strict=True):
        assert [kept.tolist() for kept in a.lists()] == [kept.tolist() for kept in b.lists()]


@every_policy
@given(data=st.data())
@quick
def test_a_prompt_leaves_no_trace(name, data):
    """The same prompt again, after another one in between: the same answers."""
    policy, prompt, model = data.draw(cases(name))
    first = drive(policy, prompt, model)
    drive(policy, prompt, Model(-model.queries, model.keys))
    for a, b in zip(first.steps, drive(policy, prompt, model).steps, strict=True):
        for field in fields(Decision):
            before, after = getattr(a.decision, field.name), getattr(b.decision, field.name)
            assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after


def test_pyramidinfer_weighs_the_newest_tokens():
    policy = PyramidInfer()
    assert [policy.window_of(n, 1) for n in (1, 4, 5, 99, 100, 2000)] == [1, 1, 1, 19, 20, 400]
    np.testing.assert_allclose(policy.weights_of(5), [1.0, 1.05, 1.1, 1.15, 1.2])
    assert policy.weights_of(1).shape == (1,) and policy.weights_of(5).dtype == np.float32


def test_pyramidinfer_with_the_papers_decay():
    """Every layer keeps a cosine's share of the layer before it, whatever the budget."""
    policy, n_layer = PyramidInfer(decay=0.9, min_context=1, n_sink=0), 8
    expected, n = [], 1000
    for layer in range(n_layer):
        n = int(n * (0.1 * (np.cos(np.pi * layer / n_layer) + 1) / 2 + 0.9))
        expected.append(n)
    assert policy.counts(1000, n_layer, 0.9) == expected and expected[0] == 1000


def test_the_window_of_the_default_policy_follows_the_budget():
    policy = SpanASL()
    assert [policy.window_of(2000, n_kept) for n_kept in (17, 51, 60, 100, 128, 1000)] == [12, 12, 12, 12, 16, 32]
    assert policy.window_of(7, 1000) == 7 and policy.min_kept == 12 + 4 + 1
    assert replace(policy, window=5).window_of(2000, 51) == 5 and replace(policy, window=5).min_kept == 5 + 4 + 1
