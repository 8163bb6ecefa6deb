"""The selection layer that a report names: where a rule fired, as the authors' code says it."""

from __future__ import annotations

import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.policies import ASL, SpanASL
from harness import Options, assert_same, prompt

N_LAYER = 6
TOKENS = prompt(170)
ANSWER = [70, 71]


@pytest.mark.parametrize("policy", [ASL, SpanASL])
def test_a_rule_that_fires_at_the_last_layer(load_tiny, policy):
    """It is the selection layer; what is kept is what a rule that never fires keeps."""
    fires = policy(min_layer=N_LAYER - 1, obs_layers=2, tau=2)
    never = policy(min_layer=N_LAYER - 1, obs_layers=2, tau=0)
    with load_tiny("llama").context(Options(n_ctx=256)) as context:
        session = context.session(512)
        silent = prefill(session, TOKENS, never, 70)
        expected = context.continuation(ANSWER)
        report = prefill(session, TOKENS, fires, 70)
        assert_same(context.continuation(ANSWER), expected)
    assert (silent.selection_layer, report.selection_layer) == (None, N_LAYER - 1)
    assert report.selected == silent.selected == () and report.rows_by_layer == silent.rows_by_layer
    assert report.token_layers == silent.token_layers and report.kept_tokens == silent.kept_tokens == 70


def test_earlier_layers_are_as_they_were(load_tiny):
    with load_tiny("llama").context(Options(n_ctx=256)) as context:
        report = prefill(context.session(512), TOKENS, SpanASL(min_layer=N_LAYER - 2, obs_layers=2, tau=2), 70)
    assert report.selection_layer == N_LAYER - 2 and len(report.selected) == 70
