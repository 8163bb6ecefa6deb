"""llama.cpp builds a chunk's graph once, and every layer is cut from it: bit for bit as if each layer had one of its own."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from asl_gguf.native.session import Session, sliding_layers
from harness import F16, Q8_0, Context, Options, llama_cpp, prompt
from pairs import pairs
from tiny_gguf import ARCHITECTURES, SLIDING

N_LAYER, WINDOW = 6, 8
OPTIONS = Options(n_ctx=256, n_batch=40, n_ubatch=24)
N_TOKENS, N_CHUNKS = 130, 7  # 24 and 16 tokens of every 40
KEPT = np.append(np.arange(0, N_TOKENS - WINDOW, 3), np.arange(N_TOKENS - WINDOW, N_TOKENS)).astype(np.int32)
N_CHUNKS_KEPT = 3  # of 49 tokens
ANSWER = [70, 71]


@pytest.fixture(params=ARCHITECTURES + SLIDING)
def architecture(request) -> str:
    return request.param


@pytest.fixture
def model(load_tiny, architecture):
    return load_tiny(architecture)


def run(context: Context, session: Session, tokens: list[int], selects: int) -> list[Any]:
    """Everything that a prefill gives that keeps some tokens after layer `selects` - 1, and what it says of its graphs."""
    session.begin(tokens, WINDOW)
    found: list[Any] = []
    slides = sliding_layers(context.model.handle)
    for layer in range(selects):
        session.run(1, True)
        found += [session.scores(), session.queries()]
        if not slides[layer]:
            session.keep_rows(KEPT)
        if layer == selects - 1:
            session.keep_tokens(KEPT)
    session.finish()
    return [*found, *context.continuation(ANSWER), session.info()]


@pairs(selects=[1, 3, N_LAYER - 1], flash=[False, True], kv=[F16, Q8_0], dequant=["off", "auto", "int16"])
def test_graphs_of_chunks_serve_every_layer(model, monkeypatch, selects, flash, kv, dequant):
    """Two prompts, one after the other, each with its graphs built for every layer, and once."""
    options = Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv)
    with model.context(options) as context:
        session = context.session()
        session.set_dequant(dequant)
        for seed in range(2):
            tokens = prompt(N_TOKENS, seed)
            monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
            *expected, rebuilt = run(context, session, tokens, selects)
            monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", "0")
            *found, info = run(context, session, tokens, selects)
            for a, b in zip(found, expected, strict=True):
                assert np.array_equal(a, b)
            n_parts = N_CHUNKS * selects + N_CHUNKS_KEPT * (
                N_LAYER - 1 - selects
            )  # the last layer's graphs have outputs
            assert (
                info.n_parts == info.n_graphs + n_parts - N_CHUNKS - N_CHUNKS_KEPT * (selects < N_LAYER - 1) == n_parts
            )
            assert rebuilt.n_graphs == rebuilt.n_parts == n_parts
            assert 0 < info.host_us


def test_more_chunks_than_there_is_memory_for(load_tiny, monkeypatch):
    """Chunks beyond the bound share a graph, which is built for each layer again."""
    with load_tiny("llama").context(Options(n_ctx=512, n_batch=2, n_ubatch=2)) as context:
        session = context.session()
        results = []
        for disabled in "10":
            monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", disabled)
            session.begin(prompt(400), WINDOW)
            session.finish()
            results.append((context.continuation(ANSWER), session.info()))
    (expected, rebuilt), (found, info) = results
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    n_chunks = 200
    assert rebuilt.n_graphs == rebuilt.n_parts == info.n_parts == n_chunks * (N_LAYER - 1)
    assert n_chunks < info.n_graphs < info.n_parts


def test_control_vectors_that_change_between_layers(load_tiny, monkeypatch):
    """A vector that reaches other layers than the one before: a graph that was built with that one serves no more."""
    model = load_tiny("llama")
    width = N_LAYER * 128
    steer = np.random.default_rng(0).standard_normal(width, dtype=np.float32)
    results = []
    for disabled in "10":
        monkeypatch.setenv("LLAMA_GRAPH_REUSE_DISABLE", disabled)
        with model.context(OPTIONS) as context:
            session = context.session()
            session.begin(prompt(N_TOKENS), WINDOW)
            for layers in ((1, 2), (3, 4), (0, 0)):
                data = steer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                assert llama_cpp.llama_set_adapter_cvec(context.handle, data, width, 128, *layers) == 0
                session.run(1, False)
                session.keep_rows(None)
            session.finish()
            results.append(context.logits())
    assert np.array_equal(*results)
