"""Embeddings of their own for every layer (Gemma 3n, Gemma 4 E2B): a layer looks up and projects its share alone."""

from __future__ import annotations

import ctypes
from contextlib import closing

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.session import Session
from asl_gguf.policies import make_policy
from ggml_tensor import Tensor
from harness import Model, Options, assert_same
from tiny_kinds import write_kind

N_TOKENS = 90
ANSWER = [70, 71, 72]
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
KINDS = {"shared-kv": (64, 8), "streams": (256, 22)}
"""elements of an embedding, and layers"""
OPTIONS = Options(n_ctx=256, n_batch=48, n_ubatch=32)


def prompt() -> list[int]:
    return np.random.default_rng(3).integers(0, 128, N_TOKENS).tolist()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def open_model(kind: str, stored: str, folder) -> Model:
    names = ("per_layer_model_proj.weight", "per_layer_token_embd.weight")
    return Model(write_kind(folder / "model.gguf", kind, types=dict.fromkeys(names, stored)))


@pytest.mark.parametrize("stored", TYPES)
def test_nothing_pruned_is_stock_whatever_the_types(kind, stored, tmp_path):
    with closing(open_model(kind, stored, tmp_path)) as model:
        with model.context(OPTIONS) as stock, model.context(OPTIONS) as ours:
            prefill(ours.session(), prompt(), make_policy("none"), N_TOKENS)
            stock.prefill(prompt())
            assert_same(ours.continuation(ANSWER), stock.continuation(ANSWER), stored)


def test_a_layer_computes_no_more_than_its_share(kind, tmp_path):
    n_embd, n_layer = KINDS[kind]
    widths: set[int] = set()

    @llama_cpp.ggml_backend_sched_eval_callback
    def look(pointer, _ask, _data):
        tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        widths.add(tensor.ne[0])
        return False

    with closing(open_model(kind, "F32", tmp_path)) as model, model.context(OPTIONS) as ours:
        params = ours.params
        params.cb_eval = look
        session = Session(ours.handle, params, OPTIONS.n_ctx)
        session.begin(prompt()[: OPTIONS.n_ubatch], 8)
        session.run(n_layer - 1, False)
        session.abort()
        session.close()
    assert n_embd in widths and n_embd * n_layer not in widths
