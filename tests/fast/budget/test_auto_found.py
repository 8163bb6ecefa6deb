"""`auto` on a model for which `asl-gguf calibrate` stored what to go by."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.budget import late as late_budgets
from asl_gguf.budget.late import Thresholds
from asl_gguf.models.calibration import save_cut
from asl_gguf.models.cuts import FoundCut, StoredCut
from asl_gguf.policies.cut import Cut
from harness import prompt
from tiny_llama import N_HEAD_KV, N_LAYER, SETTLES, logits

N_CTX = 2048


@pytest.fixture
def with_cut(tiny_model, config):
    """`with_cut(threshold)`: what `auto` goes by on the tiny model is stored: few tokens up to this peak."""

    def store(threshold: float, policy=SETTLES) -> None:
        found = FoundCut(Cut(3, 1, False, threshold, 0.25), 0.0, 0.2, 0.4, 36)
        save_cut(tiny_model("llama"), "asl-span", StoredCut.of(found, policy, "0"))

    return store


def test_a_llama_with_what_calibrate_found(make, with_cut):
    """Its own head decides: few tokens or the upper limit, which is what a model without it keeps, to the last bit."""
    plain = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    plain.prefill(prompt(1000))
    expected = logits(plain)
    with_cut(1.0)
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    report = llm.prefill(prompt(1000))
    assert report.kept_tokens == report.budget_tokens == 100 and set(report.rows_by_layer) == {100}
    pattern = (
        r"auto:0\.1-0\.5: 100 tokens: in layer 3, head 1 has [\d.]+% of its attention to the document on 8 tokens .*"
    )
    assert re.fullmatch(pattern, report.budget_choice)
    with_cut(0.0)
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    assert llm.prefill(prompt(1000)).kept_tokens == 500 and np.array_equal(logits(llm), expected)
    assert "(few suffice up to 0.0%)" in llm.last_prefill.budget_choice
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES, asl_calibration=False)
    llm.prefill(prompt(1000))
    assert "no thresholds are known" in llm.last_prefill.budget_choice


def test_known_thresholds_decide_before_what_calibrate_found(make, with_cut, monkeypatch):
    with_cut(0.0)
    always, never = -1.0, 2.0
    known = Thresholds(3, 4, never, (always, 0), (0, 1), (always - 1, always))  # one place
    monkeypatch.setitem(late_budgets.CALIBRATED, (N_LAYER, N_HEAD_KV, 128), known)
    report = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES).prefill(prompt(1000))
    assert report.kept_tokens == 100 and "is on the document" in report.budget_choice


def test_what_was_found_under_another_policy_is_not_taken(make, with_cut, caplog):
    with_cut(1.0, replace(SETTLES, tau=0.123))
    report = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES).prefill(prompt(1000))
    assert report.kept_tokens == 500 and "found with other parameters of asl-span" in caplog.text
