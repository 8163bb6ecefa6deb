"""bench/gpu: a model file of a large model's shape, in its smallest size."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from asl_gguf.bench.prefill import bench_prefill
from asl_gguf.native.model import ContextOptions, Model


@pytest.fixture(scope="module")
def model(script, tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "tiny.gguf"
    script.write_model(str(path), script.SHAPES["tiny"])
    model = Model(str(path), ContextOptions(flash_attn=True))
    yield model
    model.close()


def test_weights_keep_the_scale_of_their_input(script):
    weights = gguf.quants.dequantize(script.q4_k(np.random.default_rng(0), 64, 512), gguf.GGMLQuantizationType.Q4_K)
    assert weights.shape == (64, 512)
    assert abs(weights.mean()) < 0.02 / np.sqrt(512)
    assert np.var(weights) == pytest.approx(1 / 512, rel=0.02)


def test_a_space_may_be_three_tokens(model):
    """This vocabulary has a token for bytes alone, and SentencePiece's mark of a space has three."""
    tokens = model.tokenize(" " * 100)
    assert len(tokens) == 301


def test_the_bench_runs_on_it(model):
    result = bench_prefill(model, n_tokens=600, budget=0.2, policy="fastkv:tsp_layer=1", dequant="off", runs=1)
    assert (result["prompt_tokens"], result["kept_tokens"], result["selection_layer"]) == (600, 120, 1)
