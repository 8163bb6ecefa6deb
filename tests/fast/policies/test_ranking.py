"""The NumPy twins against loops that do what their docstrings say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asl_gguf.policies import ranking

SMALL = st.floats(-100, 100, width=32)
SHAPES = st.one_of(st.tuples(st.integers(1, 30)), st.tuples(st.integers(1, 3), st.integers(1, 30)))
VALUES = arrays(np.float32, SHAPES, elements=SMALL)
# few distinct values: ties are the rule
TIED = arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))


@given(VALUES, st.integers(0, 4))
def test_average_pool(values, half):
    pooled = ranking.average_pool(values, 2 * half + 1)
    assert pooled.shape == values.shape and pooled.dtype == np.float32
    n = values.shape[-1]
    for row, got in zip(values.reshape(-1, n), pooled.reshape(-1, n), strict=True):
        for i in range(n):
            near = [float(row[j]) for j in range(i - half, i + half + 1) if 0 <= j < n]
            assert got[i] == pytest.approx(math.fsum(near) / (2 * half + 1), rel=1e-6, abs=1e-5)


@given(VALUES, st.integers(0, 5), st.integers(0, 5))
def test_span_maximum(values, back, forward):
    spanned = ranking.span_maximum(values, back, forward)
    assert spanned.shape == values.shape and spanned.dtype == np.float32
    n = values.shape[-1]
    for row, got in zip(values.reshape(-1, n), spanned.reshape(-1, n), strict=True):
        for i in range(n):
            assert got[i] == max(row[j] for j in range(i - forward, i + back + 1) if 0 <= j < n)


def test_span_reaches_forward_and_back():
    values = np.zeros(12, dtype=np.float32)
    values[5] = 1
    assert np.flatnonzero(ranking.span_maximum(values, back=1, forward=3)).tolist() == [4, 5, 6, 7, 8]


@given(arrays(np.float32, SHAPES, elements=st.floats(0, 100, width=32)), st.integers(0, 5), st.integers(0, 5))
def test_a_share_of_a_score_reaches_back(values, back, forward):
    spanned = ranking.span_maximum(values, back, forward, 0.25)
    n = values.shape[-1]
    for row, got in zip(values.reshape(-1, n), spanned.reshape(-1, n), strict=True):
        for i in range(n):
            ahead = [row[j] for j in range(max(0, i - forward), i + 1)]
            behind = [row[j] * np.float32(0.25) for j in range(i, min(n, i + back + 1))]
            assert got[i] == max(ahead + behind)


def test_no_share_of_a_score_reaches_back():
    values = np.array([0, 0, 1, 0], dtype=np.float32)
    assert ranking.span_maximum(values, back=2, forward=1, back_share=0).tolist() == [0, 0, 1, 1]


@given(st.one_of(VALUES, TIED))
def test_order_by_score(scores):
    order = ranking.order_by_score(scores)
    assert order.dtype == np.int32
    n = scores.shape[-1]
    for row, got in zip(scores.reshape(-1, n), order.reshape(-1, n), strict=True):
        assert got.tolist() == sorted(range(n), key=lambda i: (-row[i], i))


ODD = arrays(np.float32, SHAPES, elements=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]))


@given(st.one_of(VALUES, TIED, ODD), st.integers(0, 30))
def test_best_are_the_first_by_score(scores, n_kept):
    n_kept = min(n_kept, scores.shape[-1])
    best = ranking.best(scores, n_kept)
    assert best.dtype == np.int32
    assert np.array_equal(best, np.sort(ranking.order_by_score(scores)[..., :n_kept], axis=-1))


@given(st.one_of(VALUES, TIED))
def test_ranks(scores):
    ranks = ranking.ranks(scores)
    assert ranks.dtype == np.int32
    n = scores.shape[-1]
    for row, got in zip(scores.reshape(-1, n), ranks.reshape(-1, n), strict=True):
        for i in range(n):
            ahead = sum(row[j] > row[i] or (row[j] == row[i] and j < i) for j in range(n))
            assert got[i] == ahead + 1


def naive_variance(rows: list[list[int]], top: int) -> float:
    union = [i for i in range(len(rows[0])) if any(row[i] <= top for row in rows)]
    squares = []
    for i in union:
        mean = sum(row[i] for row in rows) / len(rows)
        squares += [(row[i] - mean) ** 2 for row in rows]
    return math.fsum(squares) / len(squares)


@given(st.data(), st.integers(1, 20), st.integers(1, 5))
def test_rank_variance(data, n, n_rows):
    rows = [data.draw(st.permutations(range(1, n + 1))) for _ in range(n_rows)]
    top = data.draw(st.integers(1, n))
    variance = ranking.rank_variance([np.array(row, dtype=np.int32) for row in rows], top)
    assert variance == pytest.approx(naive_variance(rows, top), rel=1e-12, abs=1e-12)
    assert variance >= 0


@given(st.permutations(range(1, 15)), st.integers(1, 14), st.integers(1, 6))
def test_equal_ranks_have_no_variance(row, top, n_rows):
    assert ranking.rank_variance([np.array(row, dtype=np.int32)] * n_rows, top) == 0


HEADS = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)])


@given(st.integers(0, 2**31), st.integers(1, 12), HEADS, st.booleans(), st.booleans(), st.data())
def test_window_scores(seed, n_tokens, heads, weighted, has_sinks, data):
    """One softmax a query and head, over the keys up to the query's own and the head's sink, times the query's weight."""
    (n_head, n_head_kv), scale = heads, 0.3
    n_window = data.draw(st.integers(1, n_tokens))
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((n_window, n_head, 4), dtype=np.float32) * 3
    keys = rng.standard_normal((n_tokens, n_head_kv, 4), dtype=np.float32) * 3

    factors = rng.uniform(0, 2, n_window).astype(np.float32) if weighted else np.ones(n_window, dtype=np.float32)

    sinks = rng.standard_normal(n_head, dtype=np.float32) * 3

    expected, total = np.zeros((n_head_kv, n_tokens)), np.zeros(n_head_kv)
    for i in range(n_window):
        for head in range(n_head):
            kv = head // (n_head // n_head_kv)
            seen = n_tokens - n_window + i + 1
            weights = [math.exp(scale * math.fsum((queries[i, head] * keys[j, kv]).tolist())) for j in range(seen)]
            sink = math.exp(sinks[head]) if has_sinks else 0.0
            total[kv] += factors[i] * (1 - sink / (sink + sum(weights)))
            for j in range(seen):
                expected[kv, j] += factors[i] * weights[j] / (sink + sum(weights))

    scores = ranking.window_scores(queries, keys, scale, factors if weighted else None, sinks if has_sinks else None)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(scores.sum(axis=-1), total, rtol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 12), HEADS)
def test_last_query_products(seed, n_tokens, heads):
    """Each query head of the last token with its KV head's keys; earlier queries count for nothing."""
    n_head, n_head_kv = heads
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((3, n_head, 4), dtype=np.float32) * 3
    keys = rng.standard_normal((n_tokens, n_head_kv, 4), dtype=np.float32) * 3
    expected = [
        math.fsum(
            float(queries[-1, head, i]) * float(keys[j, head // (n_head // n_head_kv), i])
            for head in range(n_head)
            for i in range(4)
        )
        for j in range(n_tokens)
    ]
    products = ranking.last_query_products(queries, keys)
    assert products.shape == (n_tokens,) and products.dtype == np.float32
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(products, ranking.last_query_products(queries[-1:], keys))


@given(st.integers(1, 20), st.integers(1, 3), st.booleans(), st.data())
def test_gather_rows(n_tokens, n_head_kv, per_head, data):
    rows = np.arange(n_tokens * n_head_kv * 2).reshape(n_tokens, n_head_kv, 2)
    n_kept = data.draw(st.integers(1, n_tokens))
    lists = [sorted(data.draw(st.permutations(range(n_tokens)))[:n_kept]) for _ in range(n_head_kv if per_head else 1)]
    index = np.array(lists if per_head else lists[0], dtype=np.int32)
    gathered = ranking.gather_rows(rows, index)
    assert gathered.shape == (n_kept, n_head_kv, 2)
    for cell in range(n_kept):
        for head in range(n_head_kv):
            token = lists[head if per_head else 0][cell]
            assert gathered[cell, head].tolist() == rows[token, head].tolist()
