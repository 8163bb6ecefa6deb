"""Physical memory of a pruned cache: cells take it once they are written, so it falls with the rows of a layer."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.context import resident_bytes
from asl_gguf.policies import PyramidInfer
from harness import Context, Options, prompt
from twins import random_index

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no pages are given back"),
]

N_CELLS = 8192
N_TOKENS = 2200
COUNTS = [2000, 2000, 1500, 1000, 400, 100]
"""rows of each layer"""
N_HEAD_KV = 2
N_PAD = 256
"""cells that llama.cpp reads beyond the last one in use, at most"""
FLASH = Options(n_ctx=N_CELLS, n_batch=512, n_ubatch=512, flash=True)


def keep_counts(context: Context, counts: list[int], n_tokens: int = N_TOKENS) -> None:
    rng = np.random.default_rng(0)
    session = context.session(n_ctx=N_CELLS)
    session.begin(prompt(n_tokens), 8)
    for count in counts:
        session.run(1, False)
        session.keep_rows(random_index(rng, n_tokens, count, N_HEAD_KV))
    session.finish()


def bytes_of_rows(context: Context, n_rows: int) -> int:
    """Of one layer."""
    info = context.session(n_ctx=N_CELLS).info()
    return n_rows * info.kv_bytes_cell // info.n_layer


def test_memory_falls_with_the_rows_of_a_layer(load_tiny):
    with load_tiny("llama").context(FLASH) as context:
        allocated = bytes_of_rows(context, N_CELLS)
        fresh = sum(resident_bytes(context.handle))
        assert fresh < 0.05 * allocated * len(COUNTS), "cells take memory once they are written"
        keep_counts(context, COUNTS)
        resident = resident_bytes(context.handle)
        for layer, count in enumerate(COUNTS):
            least = bytes_of_rows(context, count)
            most = bytes_of_rows(context, count + N_PAD) + 4 * mmap.PAGESIZE  # a page at either end of K and V
            print(f"layer {layer}: {count} rows, {least} bytes, {resident[layer]} resident, {allocated} allocated")
            assert least <= resident[layer] <= most < allocated


def test_clearing_gives_pages_back(load_tiny):
    """llama-server clears the context that it has just made: all cells took memory then."""
    answer = prompt(300, seed=3)
    with load_tiny("llama").context(FLASH) as used, load_tiny("llama").context(FLASH) as fresh:
        keep_counts(used, [2000] * 6)
        begun = sum(resident_bytes(used.handle))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(used.handle), True)
        assert sum(resident_bytes(used.handle)) < 0.05 * begun
        for context in (used, fresh):
            context.decode(answer)
        assert np.array_equal(used.logits(), fresh.logits())


def test_transposed_values_fall_by_the_page(load_tiny):
    """Without flash attention V is [channels, cells]: each channel has pages of its own."""
    plain = Options(n_ctx=N_CELLS, n_batch=512, n_ubatch=512)
    with load_tiny("llama").context(plain) as context:
        keep_counts(context, COUNTS)
        resident = resident_bytes(context.handle)
        cells_per_page = mmap.PAGESIZE // 2
        for layer, count in enumerate(COUNTS):
            keys = bytes_of_rows(context, count + N_PAD) // 2 + 2 * mmap.PAGESIZE
            values = bytes_of_rows(context, count + N_PAD + 2 * cells_per_page) // 2
            assert resident[layer] <= keys + values
        assert resident[-1] < resident[0]


def test_the_next_prompt_gives_pages_back(load_tiny):
    with load_tiny("llama").context(FLASH) as context:
        keep_counts(context, [2000] * 6)
        long = sum(resident_bytes(context.handle))
        keep_counts(context, [100] * 6, 300)
        short = sum(resident_bytes(context.handle))
        assert bytes_of_rows(context, 100) * 6 <= short < long / 3


def test_cells_that_were_given_back_can_be_used(load_tiny):
    """Decoding after a short prompt writes to cells whose pages a long one had taken: as in a new context."""
    answer = prompt(1500, seed=3)
    with load_tiny("llama").context(FLASH) as used, load_tiny("llama").context(FLASH) as fresh:
        keep_counts(used, [2000] * 6)
        for context in (used, fresh):
            keep_counts(context, [100] * 6, 300)
            for begin in range(0, len(answer), 500):
                context.decode(answer[begin : begin + 500])
        assert np.array_equal(used.logits(), fresh.logits())


def test_report(tiny_model):
    llm = Llama(
        str(tiny_model("llama")),
        n_ctx=4096,
        asl_budget=0.5,
        asl_policy=PyramidInfer(min_context=12),
        asl_decode_ctx=4096,
        flash_attn=True,
        n_batch=512,
    )
    llm.create_completion(prompt(2000), max_tokens=1)
    report = llm.last_prefill
    assert report.pruned and len(set(report.rows_by_layer)) > 1
    assert report.kv_bytes_prompt <= report.kv_bytes_resident < report.kv_bytes / 2
