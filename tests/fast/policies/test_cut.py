"""One head's peak: what it is, which keys it is read from, and what a cut makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.errors import OptionError
from asl_gguf.policies.contract import LayerScores
from asl_gguf.policies.cut import N_BEST, Cut, head_attention, peaks
from asl_gguf.policies.ranking import window_scores
from asl_gguf.policies.reading import N_QUESTION, query_weights

CUT = Cut(3, 1, True, 0.5, 0.25)


def scores(n: int = 200, n_head: int = 4, n_head_kv: int = 2, seed: int = 0) -> LayerScores:
    random = np.random.default_rng(seed)
    queries = random.normal(size=(24, n_head, 16)).astype(np.float32)
    keys = random.normal(size=(n, n_head_kv, 16)).astype(np.float32)
    return LayerScores(3, np.ones((n_head_kv, n), np.float32), 24, queries=queries, keys=keys)


def test_a_peak_by_hand():
    attention = np.full((2, 300), 0.001, np.float32)
    attention[:, :4] = 100  # sinks and the question are no part of the document
    attention[:, -N_QUESTION:] = 100
    attention[1, 50 : 50 + N_BEST] = 0.1
    n = 300 - 4 - N_QUESTION
    even, peaked = peaks(attention, 4)
    assert even == pytest.approx(N_BEST / n, rel=1e-6)
    assert peaked == pytest.approx(0.1 * N_BEST / (0.1 * N_BEST + 0.001 * (n - N_BEST)), rel=1e-6)


def test_no_document():
    assert peaks(np.ones((1, 4 + N_BEST + N_QUESTION), np.float32), 4) is None
    assert peaks(np.ones((1, 5 + N_BEST + N_QUESTION), np.float32), 4) is not None
    assert peaks(np.zeros((1, 300), np.float32), 4) is None
    assert peaks(np.full((1, 300), np.nan, np.float32), 4) is None


@pytest.mark.parametrize("head", range(4))
def test_a_head_is_read_with_its_own_keys(head):
    made = scores()
    all_heads = head_attention(made.queries, made.keys, CUT.scale)
    assert all_heads.shape == (4, 200)
    grouped = window_scores(made.queries[-20:], made.keys, CUT.scale, query_weights(20))
    np.testing.assert_allclose(all_heads.reshape(2, 2, 200).sum(axis=1), grouped, rtol=1e-5)
    assert replace(CUT, head=head).read(made, 4) == pytest.approx(peaks(all_heads, 4)[head], rel=1e-6)


def test_what_cannot_be_read():
    made = scores()
    assert replace(CUT, head=4).read(made, 4) is None
    assert CUT.read(replace(made, keys=None), 4) is None and CUT.read(replace(made, queries=None), 4) is None
    assert CUT.read(scores(50), 4) is None


@pytest.mark.parametrize("above, needs", [(True, [1, 0, 0]), (False, [0, 0, 1])])
def test_what_it_needs(above, needs):
    cut = replace(CUT, above=above)
    assert [cut.need(peak) for peak in (0.2, 0.5, 0.8)] == needs
    assert [replace(cut, few=0.25).need(peak) for peak in (0.2, 0.5, 0.8)] == [need or 0.25 for need in needs]
    assert cut.words(0.8) == (
        "in layer 3, head 1 has 80.0% of its attention to the document on 8 tokens (few suffice "
        f"{'from 50.0% on' if above else 'up to 50.0%'})"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"layer": -1}, {"head": True}, {"above": 1}, {"threshold": 1.5}, {"threshold": "x"}, {"scale": 0.0}, {"few": 1.0}],
    ids=str,
)
def test_outside_its_domain(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        replace(CUT, **wrong)
