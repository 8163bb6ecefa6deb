"""Prompts of more tokens than go by way of the host at once, and what they leave on the heap."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from asl_gguf.bench.memory import measure
from asl_gguf.engine.prefill import prefill
from asl_gguf.native.model import ContextOptions
from asl_gguf.native.session import Session
from asl_gguf.policies import make_policy
from harness import Context, Options, prompt
from tiny_gguf import write_model

pytestmark = pytest.mark.long

N_TOKENS = 17_000
"""more than cache.cpp copies at once (N_CELLS_AT_ONCE)"""
N_KEPT = 400
OPTIONS = Options(n_ctx=17_152, n_batch=512, n_ubatch=512)


@pytest.fixture(scope="module")
def flat(load_tiny):
    """Two layers, for what is tested takes no depth."""
    return load_tiny("llama", n_layer=2, n_head=2, n_head_kv=1, n_ctx_train=32_768)


def begun(context: Context, tokens: list[int]) -> Session:
    session = context.session()
    session.set_dequant("int16")  # the tests need no bits of llama.cpp's, whose attention takes seconds here
    session.begin(tokens, 8)
    return session


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
def test_rows_of_a_long_prompt_are_those_of_its_parts(flat, flash):
    tokens, options = prompt(N_TOKENS), Options(**{**vars(OPTIONS), "flash": flash})
    with flat.context(options) as context:
        session = begun(context, tokens)
        session.run(1, False)
        rows = session.save_rows(0, N_TOKENS)
        parts = [session.save_rows(begin, min(begin + 4096, N_TOKENS)) for begin in range(0, N_TOKENS, 4096)]
        assert np.array_equal(rows, np.concatenate(parts))
        assert np.unique(rows[-600:], axis=0).shape[0] > 500
        session.abort()
        session.begin(tokens, 8)
        session.set_past(N_TOKENS - 8)
        session.load_rows(rows[:-8])
        session.run(1, False)
        assert np.array_equal(session.save_rows(0, N_TOKENS - 8), rows[:-8])
        session.abort()


def resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_long_prompt_leaves_no_freed_memory_behind(flat):
    """glibc keeps it, 50 MiB after such a prompt, 200 after one of 131,072 tokens."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("not glibc")
    libc.malloc_trim(0)
    with flat.context(OPTIONS) as context:
        session = begun(context, prompt(N_TOKENS))
        session.abort()
        prefill(session, prompt(N_TOKENS), make_policy("fastkv:tsp_layer=0"), N_KEPT)
        before = resident()
        libc.malloc_trim(0)
        assert before - resident() < 16 * 2**20


def test_the_expected_memory_holds(tmp_path):
    """docs/SPEED.md: what a prefill takes beside the model, in a process of its own."""
    path = write_model(
        tmp_path / "wide.gguf", "llama", n_layer=2, n_head=2, n_head_kv=1, n_embd=512, n_ctx_train=32_768, weight_type="Q8_0",
    )  # fmt: skip
    found = measure(str(path), ContextOptions(n_threads=1), 8192, 0.1, "fastkv:tsp_layer=0", "int16")
    assert 0.3 * found["expected"] < found["peak"] - found["before"] < found["expected"]
