"""Decoding through `Llama` with quantised weights: stock's bits with asl_dequant=False or without a budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.native.bindings import lib
from harness import llama_cpp, prompt
from tiny_llama import N_CTX, greedy, logits


@contextmanager
def opened(cls: type, path: object, **options: Any) -> Iterator[Any]:
    with closing(cls(str(path), n_ctx=N_CTX, n_threads=1, n_threads_batch=1, verbose=False, **options)) as llm:
        yield llm


@pytest.mark.parametrize("weight_type", ["Q4_1", "Q8_0"])
def test_stock_bits_where_they_are_promised(tiny_model, weight_type):
    path = tiny_model("llama", weight_type=weight_type)
    with opened(llama_cpp.Llama, path) as stock:
        greedy(stock, prompt(50), 12)
        expected = logits(stock)
    for options in ({"asl_budget": None}, {"asl_budget": 0.5, "asl_dequant": False}):
        with opened(Llama, path, **options) as llm:
            greedy(llm, prompt(50), 12)
            assert np.array_equal(logits(llm), expected), options


@pytest.mark.skipif(lib.packed_kernel_name() != b"AVX-512 VNNI", reason="no kernel of our own for decoding here")
def test_the_default_has_a_kernel_of_its_own(tiny_model):
    """Near stock's logits: both round activations to 8 bits."""
    path = tiny_model("llama", weight_type="Q4_1")
    found = []
    for dequant in (False, "auto"):
        with opened(Llama, path, asl_budget=0.5, asl_dequant=dequant) as llm:
            llm.eval(prompt(50))
            for token in prompt(60)[50:]:
                llm.eval([token])
            found.append(logits(llm))
    assert not np.array_equal(*found)
    assert np.sqrt(np.mean(np.subtract(*found) ** 2)) < 0.05 * np.std(found[0])
