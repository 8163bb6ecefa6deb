"""Session.scores() against its NumPy twin, on the queries and keys that the session itself returns.

That these keys are the model's is in test_rows.py; that the queries are, test_queries_are_those_of_the_model shows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from asl_gguf.native.session import Session
from asl_gguf.policies import ranking
from harness import F16, F32, KV_NAMES, Q8_0, Options, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES
from twins import HEAD_DIM, TOLERANCE, kq_scale, relative_error

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0, F32], ids=KV_NAMES.get)


def twin(session: Session, architecture: str) -> np.ndarray:
    return ranking.window_scores(session.queries(), session.keys(), kq_scale(architecture))


def check_layer(session: Session, architecture: str, what: str) -> float:
    """The scores of the layer that ran last against their twin, and their sums; returns the largest error."""
    info, scores, expected = session.info(), session.scores(), twin(session, architecture)
    assert scores.shape == (info.n_head_kv, info.n_current) and scores.dtype == np.float32
    error = relative_error(scores, expected)
    assert error < TOLERANCE, f"{what}: largest relative error {error:.2e}"
    total = info.n_window * info.n_head / info.n_head_kv
    np.testing.assert_allclose(scores.sum(axis=-1, dtype=np.float64), total, rtol=TOLERANCE)
    return error


@pairs(architecture=ARCHITECTURES, flash=[False, True], kv=[F16, Q8_0, F32])
def test_scores_equal_the_twin(load_tiny, architecture, flash, kv):
    model, worst = load_tiny(architecture), 0.0
    with model.context(Options(n_batch=40, n_ubatch=24, flash=flash, kv=kv)) as context:
        session = context.session()
        # windows of one token, of one chunk's rest, across one border and two, and longer than the prompt
        for n_tokens, window in ((100, 1), (100, 16), (100, 32), (100, 45), (20, 32), (1, 4)):
            session.begin(prompt(n_tokens), window)
            assert session.info().n_window == min(window, n_tokens)
            for layer in range(model.n_layer):
                session.run(1, True)
                what = f"layer {layer}, {n_tokens} tokens, window {window}"
                worst = max(worst, check_layer(session, architecture, what))
    print(f"{architecture} {'flash' if flash else 'plain'} {KV_NAMES[kv]}: largest relative error {worst:.2e}")


@with_flash
@pytest.mark.parametrize("sizes", [{"head_dim": 64}, {"n_head_kv": 4}, {"n_head_kv": 1}], ids=str)
def test_other_head_layouts(load_tiny, sizes, flash):
    """Wider heads, one KV head for each query head, one KV head for all."""
    model = load_tiny("qwen3", **sizes)
    scale = 1 / math.sqrt(sizes.get("head_dim", HEAD_DIM))
    with model.context(Options(n_batch=24, n_ubatch=24, flash=flash)) as context:
        session = context.session()
        session.begin(prompt(60), 16)
        session.run(3, True)
        expected = ranking.window_scores(session.queries(), session.keys(), scale)
        assert relative_error(session.scores(), expected) < TOLERANCE


@with_kv
@with_flash
def test_chunk_size_changes_nothing(load_tiny, flash, kv):
    """The scores of the first layer, whose input is the same whatever the chunks are."""
    tokens, results = prompt(130), []
    for n_batch, n_ubatch in ((512, 512), (64, 64), (40, 24), (7, 7)):
        with load_tiny("llama").context(Options(n_batch=n_batch, n_ubatch=n_ubatch, flash=flash, kv=kv)) as context:
            session = context.session()
            session.begin(tokens, 32)
            session.run(1, True)
            results.append(session.scores())
    errors = [relative_error(other, results[0]) for other in results[1:]]
    print("largest relative errors", errors)
    assert max(errors) < TOLERANCE


@with_flash
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_after_dropping_tokens(load_tiny, architecture, flash):
    """They refer to the kept tokens, whose queries see one another in the order of the prompt."""
    model, window = load_tiny(architecture), 20
    with model.context(Options(n_batch=24, n_ubatch=24, flash=flash)) as context:
        session = context.session()
        session.begin(prompt(120), window)
        session.run(2, True)
        for step in (2, 3):  # drops twice
            n_current = session.info().n_current
            kept = np.union1d(np.arange(0, n_current, step), np.arange(n_current - window, n_current)).astype(np.int32)
            session.keep_tokens(kept)
            session.run(1, True)
            assert session.scores().shape[-1] == kept.size
            check_layer(session, architecture, f"{kept.size} tokens kept")


def test_dropped_tokens_leave_the_next_layers_keys(load_tiny):
    """A layer's keys depend on each token's own state alone: dropping others must not change them."""
    kept = np.union1d(np.arange(0, 90, 3), np.arange(80, 90)).astype(np.int32)
    with load_tiny("llama").context(Options(n_batch=24, n_ubatch=24)) as context:
        session = context.session()
        keys = []
        for drop in (False, True):
            session.begin(prompt(90), 10)
            session.run(2, False)
            if drop:
                session.keep_tokens(kept)
            session.run(1, False)
            keys.append(session.keys())
    assert np.array_equal(keys[1], keys[0][kept])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_queries_are_those_of_the_model(load_tiny, architecture):
    """The window's queries do not depend on where the window begins, nor on flash attention (first layer)."""
    results = []
    for flash, window in ((False, 40), (False, 7), (True, 40)):
        with load_tiny(architecture).context(Options(n_batch=24, n_ubatch=24, flash=flash)) as context:
            session = context.session()
            session.begin(prompt(60), window)
            session.run(1, True)
            results.append(session.queries())
    assert results[0].shape[0] == 40 and results[0].std() > 0.1
    assert np.array_equal(results[0][-7:], results[1])
    assert np.array_equal(results[0], results[2])


def test_scores_of_the_last_layer_of_a_run(load_tiny):
    """run(3) computes what run(1) three times does; without scores the hidden states are the same."""
    with load_tiny("llama").context(Options(n_batch=24, n_ubatch=24)) as context:
        session = context.session()
        session.begin(prompt(70), 16)
        for with_scores in (True, False, True):
            session.run(1, with_scores)
        expected = session.scores()
        session.begin(prompt(70), 16)
        session.run(3, True)
        assert np.array_equal(session.scores(), expected)
