"""`Llama(asl_full_kv=True)` on a model whose deeper layers read earlier ones: hidden states have several rows per token."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from tiny_kinds import write_kind
from tiny_llama import greedy, logits

OPTIONS: dict[str, Any] = {
    "n_ctx": 512,
    "n_threads": 1,
    "n_threads_batch": 1,
    "n_batch": 64,
    "asl_budget": 0.4,
    "asl_min_prompt": 40,
    "asl_policy": "fastkv:tsp_layer=3",
    "asl_full_kv": True,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_kind(tmp_path_factory.mktemp("kinds") / "carried.gguf", "carried"))


def prompt(seed: int) -> list[int]:
    """All begin alike."""
    start = np.random.default_rng(0).integers(3, 128, 100).tolist()
    return start + np.random.default_rng(seed).integers(3, 128, 20).tolist()


def test_a_prompt_that_starts_alike_answers_as_if_it_came_alone(path, tmp_path):
    with closing(Llama(path, **OPTIONS)) as alone:
        expected = greedy(alone, prompt(2)), logits(alone)
    with closing(Llama(path, **OPTIONS)) as llm, closing(Llama(path, **OPTIONS)) as other:
        greedy(llm, prompt(1))
        llm.save_prompt(tmp_path / "saved")
        other.load_prompt(tmp_path / "saved")
        for target in (llm, other):
            answer = greedy(target, prompt(2))
            assert target.last_prefill.pruned and target.last_prefill.reused_tokens == 100
            assert answer == expected[0]
            assert np.allclose(logits(target), expected[1], atol=0.01 * expected[1].std())
