"""What is read of one layer's attention: laws, and cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.policies.contract import LayerScores
from asl_gguf.policies.ranking import window_scores
from asl_gguf.policies.reading import N_BEST, N_QUERIES, N_QUESTION, read, reading_of

N, WINDOW, N_SINK = 400, 20, 4


def random_attention(seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.3, size=(3, n)) + 1e-6


def test_even_attention():
    found = reading_of(np.ones((2, N)), N_SINK)
    n_document = N - N_SINK - N_QUESTION
    assert found.document == pytest.approx(n_document / N) and found.peak == pytest.approx(N_BEST / n_document)


def test_one_head_that_found_something():
    attention = np.full((3, N), 1e-6)
    attention[:, 0], attention[1, 100:110] = 10, 1
    found = reading_of(attention, N_SINK)
    assert found.peak > 0.999 and found.document == pytest.approx(10 / 40, rel=1e-3)


def test_sinks_and_question_count_as_attention_alone():
    attention = random_attention()
    more = attention.copy()
    more[:, :N_SINK] *= 9
    more[:, -N_QUESTION:] *= 9
    first, second = reading_of(attention, N_SINK), reading_of(more, N_SINK)
    assert second.document < first.document and second.peak == first.peak


@pytest.mark.parametrize("factor", [0.5, 7.0])
def test_units_do_not_matter(factor):
    """Weights of queries scale all of it."""
    first, second = (reading_of(f * random_attention(), N_SINK) for f in (1.0, factor))
    assert (first.document, first.peak) == pytest.approx((second.document, second.peak), rel=1e-5)


def test_the_order_of_the_document_does_not_matter():
    attention = random_attention()
    other = attention.copy()
    other[:, N_SINK : N - N_QUESTION] = np.random.default_rng(1).permuted(other[:, N_SINK : N - N_QUESTION], axis=1)
    first, second = reading_of(attention, N_SINK), reading_of(other, N_SINK)
    assert (first.document, first.peak) == pytest.approx((second.document, second.peak), rel=1e-6)


def test_nothing_to_read():
    assert reading_of(random_attention(n=N_SINK + N_QUESTION + N_BEST), N_SINK) is None
    assert reading_of(random_attention(n=N_SINK + N_QUESTION + N_BEST + 1), N_SINK) is not None
    nothing = np.zeros((2, N))
    nothing[:, 0] = 1
    assert reading_of(nothing, N_SINK) is None
    assert read(LayerScores(3, random_attention().astype(np.float32), WINDOW), N_SINK) is None  # without keys


@pytest.mark.parametrize("window", [6, 12, 32])
def test_the_newest_queries_alone_are_read(window):
    """The newest count most, and a policy's longer window changes nothing."""
    rng = np.random.default_rng(2)
    queries, keys = (rng.normal(size=shape).astype(np.float32) for shape in ((window, 6, 16), (N, 3, 16)))
    found = read(LayerScores(3, random_attention().astype(np.float32), window, queries=queries, keys=keys), N_SINK)
    newest = queries[-N_QUERIES:]
    weights = np.exp2(-np.arange(len(newest))[::-1] / 8).astype(np.float32)
    assert found == reading_of(window_scores(newest, keys, 0.25, weights), N_SINK)
    assert found != reading_of(window_scores(newest, keys, 0.25), N_SINK)
