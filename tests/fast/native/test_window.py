"""Session.set_window(): windows of any length and weights on their queries, against the NumPy twin."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.errors import NativeError, OptionError
from asl_gguf.native.session import Session
from asl_gguf.policies import ranking
from harness import F16, F32, KV_NAMES, Q8_0, Options, prompt
from twins import TOLERANCE, kq_scale, relative_error

N_TOKENS = 320
N_HEAD, N_HEAD_KV = 4, 2

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0, F32], ids=KV_NAMES.get)


def random_weights(window: int) -> np.ndarray:
    return np.random.default_rng(window).uniform(0.1, 2.0, window).astype(np.float32)


def check(session: Session, weights: np.ndarray | None, architecture: str = "llama") -> float:
    """The scores of the layer that ran last against their twin; returns the largest relative error."""
    scores = session.scores()
    expected = ranking.window_scores(session.queries(), session.keys(), kq_scale(architecture), weights)
    assert scores.shape == expected.shape
    error = relative_error(scores, expected)
    assert error < TOLERANCE, f"largest relative error {error:.2e}"
    total = session.info().n_window if weights is None else weights.sum(dtype=np.float64)
    np.testing.assert_allclose(scores.sum(axis=-1, dtype=np.float64), total * N_HEAD / N_HEAD_KV, rtol=TOLERANCE)
    return error


@with_kv
@with_flash
@pytest.mark.parametrize("n_ubatch", [40, 512], ids="ubatch {}".format)
def test_any_length(load_tiny, n_ubatch, flash, kv):
    """Longer than a chunk, and than the 128 queries whose attention is computed at once; to and fro."""
    worst = 0.0
    with load_tiny("llama").context(Options(n_batch=n_ubatch, n_ubatch=n_ubatch, flash=flash, kv=kv)) as context:
        session = context.session()
        session.begin(prompt(N_TOKENS), 8)
        for window in (300, 128, 1, 129, 256, N_TOKENS):
            weights = None if window in (128, N_TOKENS) else random_weights(window)
            session.set_window(window, weights)
            assert session.info().n_window == window
            session.run(1, True)
            worst = max(worst, check(session, weights))
    print("largest relative error", worst)


@with_flash
@pytest.mark.parametrize("architecture", ["qwen3", "phi3", "llama-moe"])
def test_other_architectures(load_tiny, architecture, flash):
    weights = random_weights(150)
    with load_tiny(architecture).context(Options(n_batch=200, n_ubatch=200, flash=flash)) as context:
        session = context.session()
        session.begin(prompt(230), 8)
        session.set_window(150, weights)
        session.run(2, True)
        check(session, weights, architecture)


def test_weights_of_one_change_nothing(load_tiny):
    results = []
    with load_tiny("llama").context(Options(n_batch=40, n_ubatch=40)) as context:
        session = context.session()
        for weights in (None, np.ones(60, dtype=np.float32), np.ones((60, 2), dtype=np.float64)[:, 0]):
            session.begin(prompt(100), 60)
            session.set_window(60, weights)
            session.run(3, True)
            results.append(session.scores())
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_a_window_changes_no_layer(load_tiny):
    """Only what is scored: K/V and hidden states are those of any other window."""
    states = []
    with load_tiny("llama").context(Options(n_batch=40, n_ubatch=40)) as context:
        session = context.session()
        for window in (1, 90):
            session.begin(prompt(100), 8)
            for layer in range(3):
                session.set_window(window, random_weights(window))
                session.run(1, layer != 1)
                states.append(session.save_layer())
    for one, other in zip(states[:3], states[3:], strict=True):
        assert np.array_equal(one, other)


def test_scores_need_a_run_with_the_new_window(load_tiny):
    with load_tiny("llama").context(Options(n_batch=40, n_ubatch=40)) as context:
        session = context.session()
        session.begin(prompt(100), 8)
        session.run(1, True)
        session.set_window(50)
        for read in (session.scores, session.queries):
            with pytest.raises(NativeError, match="has no scores; run it with_scores"):
                read()
        session.run(1, True)
        assert session.queries().shape == (50, N_HEAD, 32)
        check(session, None)
        # the next prompt has the window it began with, unweighted
        session.set_window(30, random_weights(30))
        session.begin(prompt(90), 20)
        session.run(1, True)
        assert session.info().n_window == 20
        check(session, None)


def test_after_tokens_were_dropped(load_tiny):
    """The window may grow to all that is left, and no further."""
    kept = np.union1d(np.arange(0, 100, 3), np.arange(80, 100)).astype(np.int32)
    with load_tiny("llama").context(Options(n_batch=24, n_ubatch=24)) as context:
        session = context.session()
        session.begin(prompt(100), 20)
        session.run(1, True)
        session.keep_tokens(kept)
        with pytest.raises(OptionError, match=f"expected a window of 1 to {kept.size} tokens, got {kept.size + 1}"):
            session.set_window(kept.size + 1)
        for window in (kept.size, 5):
            weights = random_weights(window)
            session.set_window(window, weights)
            session.run(1, True)
            check(session, weights)


def test_refused_weights_leave_the_window_as_it_was(load_tiny):
    weights = random_weights(20)
    with load_tiny("llama").context(Options(n_batch=24, n_ubatch=24)) as context:
        session = context.session()
        session.begin(prompt(60), 8)
        session.set_window(20, weights)
        for window, wrong in ((20, weights[:19]), (19, weights), (20, weights[None]), (61, None), (0, weights[:0])):
            with pytest.raises(OptionError, match="expected (shape|a window of 1 to 60 tokens)"):
                session.set_window(window, wrong)
        assert session.info().n_window == 20
        session.run(1, True)
        check(session, weights)
