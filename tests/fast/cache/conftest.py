"""Fixtures of the tests of K/V that outlive a prompt."""

from __future__ import annotations

import pytest

from full_kv_prompts import SELECTS, SHARED
from harness import Options
from tiny_llama import Make


@pytest.fixture(name="contexts")
def two_contexts(request, load_tiny):
    flash = getattr(request, "param", False)
    model, options = load_tiny("llama"), Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash)
    with model.context(options) as context, model.context(options) as other:
        yield context, other


@pytest.fixture(name="llm_full")
def make_one(make) -> Make:
    """The same under one policy, where it does not matter which."""
    return lambda **options: make(**{**SHARED, "asl_full_kv": True, "asl_policy": SELECTS, **options})
