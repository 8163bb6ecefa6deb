"""Rope factors that depend on the context's length follow n_ctx, not the few cells of a pruned cache."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.policies import Full
from harness import Model, Options
from tiny_gguf import write_model

N_CTX = 1024
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 300, 200)]


@pytest.fixture(scope="module")
def long_rope(tmp_path_factory):
    model = Model(write_model(tmp_path_factory.mktemp("longrope") / "m.gguf", "phi3", n_ctx_original=512))
    yield model
    model.close()


def test_a_small_decode_context_uses_the_factors_of_the_long_one(long_rope):
    with long_rope.context(Options(n_ctx=N_CTX)) as stock, long_rope.context(Options(n_ctx=256)) as small:
        expected = [stock.prefill(TOKENS), *stock.continuation([7, 8])[1:]]
        prefill(small.session(n_ctx=N_CTX), TOKENS, Full(), len(TOKENS))
        for ours, theirs in zip(small.continuation([7, 8]), expected, strict=True):
            assert np.array_equal(ours, theirs)


def test_the_factors_matter(long_rope):
    with long_rope.context(Options(n_ctx=N_CTX)) as long, long_rope.context(Options(n_ctx=256)) as short:
        assert not np.allclose(long.prefill(TOKENS), short.prefill(TOKENS), atol=1e-2)
