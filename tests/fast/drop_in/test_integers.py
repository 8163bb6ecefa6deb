"""Integers that reach C: none is cut to its size without a word, and none ends the process or fills the machine."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.drop_in import init_errors
from harness import llama_cpp, prompt
from tiny_llama import greedy

BEYOND = {
    "asl_decode_ctx": (2**31, 2**32, 2**32 + 300, 2**33, 999_999_999_999),
    "asl_room": (2**31, 2**40),
    "n_ctx": (2**31, 2**32 + 512),
    "n_batch": (0, 2**31, 2**32 + 64, 2**33),
    "n_ubatch": (-1, 2**31, 2**32 + 64),
    "n_threads": (513, 100_000, 2**32 + 1, -(2**31) - 1),
    "n_threads_batch": (513, 2**33),
    "n_gpu_layers": (2**31, 2**40),
    "main_gpu": (2**32,),
    "split_mode": (2**32,),
    "rope_scaling_type": (2**32,),
    "pooling_type": (2**32 + 3,),
    "attention_type": (2**32,),
    "yarn_orig_ctx": (-1, 2**32),
    "last_n_tokens_size": (2**31,),
    "type_k": (12, 16, 24, 99, -1, 2**32 + 1),
    "type_v": (12, 24, 2**32 + 1),
}
"""argument -> values that C would take for others, or that end the process"""


@pytest.mark.parametrize("budget", [0.4, None])
@pytest.mark.parametrize("name", BEYOND)
def test_values_beyond_their_type(tiny_model, name, budget):
    path = str(tiny_model("llama"))
    for value in BEYOND[name]:
        with pytest.raises(OptionError, match=rf"^{name}: expected .*, got "):
            Llama(path, **{"n_ctx": 512, "asl_budget": budget, name: value})


def test_overrides_of_more_than_64_bits(tiny_model):
    for value in (2**63, -(2**63) - 1, 2**70):
        overrides = {"llama.context_length": value}
        with pytest.raises(
            OptionError, match=f"kv_overrides: expected integers of 64 bits, got {value} for llama.context"
        ):
            Llama(str(tiny_model("llama")), n_ctx=512, kv_overrides=overrides)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the machine does not say how much memory it has")
@pytest.mark.parametrize(
    "options",
    [{"n_ctx": 2**31 - 1}, {"n_ctx": 2**31 - 1, "asl_budget": 0.4}, {"asl_decode_ctx": 2**30, "asl_budget": 0.4}],
    ids=str,
)
def test_more_cells_than_the_machine_has_memory_for(tiny_model, options):
    """Where memory is promised before it is there, filling them would take all of it."""
    with pytest.raises(OptionError, match=r"expected a context within the \d+ GiB of this machine, got \d+ KV cells"):
        Llama(str(tiny_model("llama")), **{"n_ctx": 512, **options})


def test_what_is_counted_against_the_memory(tiny_model, monkeypatch):
    """K/V of the types that are asked for; nothing where the header may say too much, or the cells are elsewhere."""
    path, n_cells = str(tiny_model("llama")), 2**21
    n_bytes = n_cells * 6 * 2 * 64 * 2  # six layers, K and V of 64 elements of two bytes
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": n_bytes // 2}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)
    init_errors.check_cells(path, n_cells, {})
    pages["SC_PHYS_PAGES"] -= 1
    with pytest.raises(OptionError, match=f"got {n_cells} KV cells of 3 GiB"):
        init_errors.check_cells(path, n_cells, {})
    for arguments in ({"n_gpu_layers": 1}, {"swa_full": False}, {"type_k": 8, "type_v": 8, "flash_attn": True}):
        init_errors.check_cells(path, n_cells, arguments)
    init_errors.check_cells(path, 2**20 - 1, {})


def test_a_batch_that_numpy_has_no_memory_for(tiny_model, monkeypatch):
    """The parent makes an array of n_batch rows."""

    class NumPy:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def ndarray(self, *_: Any, **__: Any) -> None:
            raise MemoryError("Unable to allocate 2.52 TiB")

    monkeypatch.setattr(llama_cpp.llama, "np", NumPy())
    with pytest.raises(OptionError, match=r"expected memory for n_ctx 512 and n_batch 99: Unable to allocate.*; lower"):
        Llama(str(tiny_model("llama")), n_ctx=512, n_batch=99)


def test_values_at_the_ends_of_their_type(make):
    """Taken as they are."""
    llm = make(
        asl_budget=0.4, asl_room=2**31 - 1, n_ubatch=0, main_gpu=2**31 - 1, yarn_orig_ctx=2**32 - 1, n_threads=-1
    )
    assert len(greedy(llm, prompt(300), 2)) == 2 and llm.last_prefill.kept_tokens == 120


def test_a_window_beyond_the_prompt(make):
    """All of its tokens are the window then, however far beyond."""
    llm, other = make(asl_budget=0.4, asl_policy="snapkv:window=4294967300"), make(asl_budget=1.0)
    assert greedy(llm, prompt(300), 4) == greedy(other, prompt(300), 4)
    assert not llm.last_prefill.pruned


def test_native_calls_take_exact_integers():
    from asl_gguf.native.bindings import lib

    for value in (2**31, 2**32, -(2**31) - 1):
        for call in (
            lambda n: lib.session_begin(None, None, n, 1, 0),
            lambda n: lib.session_begin(None, None, 1, n, 0),
            lambda n: lib.session_row_bytes(None, n, None),
            lambda n: lib.session_run(None, n, False),
        ):
            with pytest.raises(
                OptionError, match=re.escape(f"expected an integer from -2147483648 to 2147483647, got {value}")
            ):
                call(value)
    with pytest.raises(OptionError, match=r"asl_session_run: expected an integer, got 1\.5"):
        lib.session_run(None, 1.5, False)
    assert sys.maxsize > 2**31
