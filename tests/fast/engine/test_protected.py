"""engine.prefill(protected=..., always_ask=...): tokens that are kept whatever their scores, and who is asked."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import ContextFullError, OptionError
from asl_gguf.inspect.recorder import PolicyRecorder
from asl_gguf.policies import REGISTRY, FastKV, Full, PyramidInfer, SnapKV, SpanASL, StreamingLLM
from harness import Options, assert_same, prompt
from prefills import ON_ANY_MODEL

N_TOKENS = 150
N_KEPT = 90
PROTECTED = np.array([3, 17, *range(40, 60), 101, 149], dtype=np.int32)


@pytest.fixture
def session(load_tiny):
    with load_tiny("llama").context(Options(n_ctx=256)) as context:
        yield context.session(1024)


@pytest.mark.parametrize("name", ON_ANY_MODEL)
def test_they_are_kept_in_every_layer(session, name):
    watch = PolicyRecorder(REGISTRY[name]())
    report = prefill(session, prompt(N_TOKENS), watch.policy, N_KEPT, protected=PROTECTED)
    current = np.arange(N_TOKENS)
    for scores, decision in watch.seen:
        assert current[scores.protected].tolist() == PROTECTED.tolist()
        for kept in [] if decision.rows is None else np.atleast_2d(decision.rows):
            assert np.isin(PROTECTED, current[kept]).all()
        if decision.tokens is not None:
            current = current[decision.tokens]
    assert np.isin(PROTECTED, report.selected).all() or not report.selected
    assert report.budget_tokens == N_KEPT and (report.pruned or name == "none")


@pytest.mark.parametrize(
    "policy",
    [SpanASL(window=8), SnapKV(window=8, n_sink=4), FastKV(n_sink=4), StreamingLLM(window=8)],
    ids=lambda p: p.name,
)
def test_as_few_as_must_be_kept(session, policy):
    """Sinks, the window and what is protected: exactly these."""
    protected = np.arange(20, 60, dtype=np.int32)
    fixed = [*range(4), *range(20, 60), *range(N_TOKENS - 8, N_TOKENS)]
    watch = PolicyRecorder(policy)
    report = prefill(session, prompt(N_TOKENS), watch.policy, len(fixed), protected=protected)
    assert report.rows_by_layer == (len(fixed),) * 6
    for _, decision in watch.seen:
        assert all(kept.tolist() == fixed for kept in np.atleast_2d(decision.rows))


@pytest.mark.parametrize(
    "protected, at_least, message",
    [
        (np.arange(20, 70), 58, "58 tokens for this policy and 50 protected tokens, or all 150"),
        (np.arange(20, 150), 130, "130 tokens for this policy and 130 protected tokens, or all 150"),
        (None, 9, "9 tokens for this policy, or all 150"),
    ],
    ids=["scattered", "with-the-window", "none"],
)
def test_too_small_a_budget(session, protected, at_least, message):
    with pytest.raises(OptionError, match=f"n_kept: expected at least {message}, got {at_least - 1}"):
        prefill(session, prompt(N_TOKENS), SnapKV(window=8), at_least - 1, protected=protected)
    assert session.info().n_tokens == 0
    assert prefill(session, prompt(N_TOKENS), SnapKV(window=8), at_least, protected=protected).kept_tokens == at_least


def test_nothing_to_protect_changes_nothing(session):
    choices = []
    for protected in (None, np.empty(0, dtype=np.int32), np.array([148, 149])):
        watch = PolicyRecorder(SpanASL(window=8))
        prefill(session, prompt(N_TOKENS), watch.policy, 60, protected=protected)
        choices.append([decision.rows.tolist() for _, decision in watch.seen])
    assert choices[0] == choices[1] == choices[2]


def test_more_than_the_deepest_layers_hold(session):
    """PyramidInfer's deeper layers make room for protected tokens beside the recent ones."""
    policy = PyramidInfer(min_context=20)
    report = prefill(session, prompt(N_TOKENS), policy, 60, protected=np.arange(20, 60, dtype=np.int32))
    assert min(report.rows_by_layer) >= 40


def test_more_than_cache_k(session):
    """Where fewer K/V rows are kept than tokens selected, it is the rows that need room."""
    policy, protected = FastKV(cache_k=20, tsp_layer=2), np.arange(20, 50, dtype=np.int32)
    with pytest.raises(OptionError, match=r"expected at least 38 tokens \(sinks, window, protected ones\), got 20"):
        prefill(session, prompt(N_TOKENS), policy, 60, protected=protected)
    assert session.info().n_tokens == 0


@pytest.mark.parametrize("name", ON_ANY_MODEL)
def test_always_ask(load_tiny, name):
    """A budget for all tokens asks nobody; if it does, all tokens are kept nevertheless."""
    options, tokens, watch = Options(n_ctx=256), prompt(N_TOKENS), PolicyRecorder(REGISTRY[name]())
    with load_tiny("llama").context(options) as stock, load_tiny("llama").context(options) as ours:
        stock.prefill(tokens)
        expected, session = stock.continuation([70, 71]), ours.session()
        report = prefill(session, tokens, watch.policy, N_TOKENS)
        assert not watch.seen and report.attention_mass is None
        assert_same(ours.continuation([70, 71]), expected)
        report = prefill(session, tokens, watch.policy, N_TOKENS, always_ask=True)
        assert watch.seen and not report.pruned and report.rows_by_layer == (N_TOKENS,) * 6
        assert_same(ours.continuation([70, 71]), expected)


@pytest.mark.parametrize("n_tokens", [1, 20, 32])
def test_always_ask_about_a_prompt_within_the_window(session, n_tokens):
    assert not prefill(session, prompt(n_tokens), SnapKV(), n_tokens, always_ask=True).pruned


def test_a_budget_that_none_ignores(session):
    """Policy none keeps all tokens, whatever n_kept: too many for the cells is said as such."""
    with pytest.raises(ContextFullError, match="expected at most 256 tokens to keep"):
        prefill(session, prompt(300), Full(), 200)
