"""The default model on a GPU, or on what stands for one (device.py)."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.engine.prefill import prefill
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.model import ContextOptions, Model, stock_prefill
from asl_gguf.policies import ASL, Full, ranking

N_TOKENS = 700


@pytest.fixture(scope="module", params=[False, True], ids=["flash-off", "flash-on"])
def model(request, smollm2):
    model = Model(str(smollm2), ContextOptions(n_threads=4, n_gpu_layers=999, flash_attn=request.param))
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokens(model):
    return model.tokenize("The lighthouse keeper wrote down the weather. " * 200)[:N_TOKENS]


def _logits(model, ctx):
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model.handle))
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, -1), shape=(n_vocab,)).copy()


def test_nothing_pruned_is_stock_within_rounding(model, tokens):
    with model.context(1024) as stock, model.context(1024) as ctx, model.session(ctx, 1024, 1024, "off") as session:
        stock_prefill(stock, tokens, 512)
        prefill(session, tokens, Full(), len(tokens))
        theirs, ours = _logits(model, stock), _logits(model, ctx)
    assert ours.argmax() == theirs.argmax()
    assert np.abs(ours - theirs).max() <= 0.05, np.abs(ours - theirs).max()


def test_scores_on_the_device_equal_the_twin(model, tokens):
    with model.context(1024) as ctx, model.session(ctx, 1024, 1024, "off") as session:
        session.begin(tokens, 32)
        for _ in range(3):
            session.run(1, True)
            queries, keys = session.queries(), session.keys()
            twin = ranking.window_scores(queries, keys, queries.shape[-1] ** -0.5)
            error = np.abs(session.scores() - twin) / twin
            assert error.max() <= 5e-3, error.max()  # tensor cores round the factors of F32 products
        session.abort()


def test_pruned_prefill_keeps_the_budget(model, tokens):
    with model.context(256) as ctx, model.session(ctx, 256, 1024, "off") as session:
        report = prefill(session, tokens, ASL(), 128)
    assert report.kept_tokens == 128


def test_llama_answers(smollm2):
    llm = Llama(str(smollm2), n_ctx=2048, n_gpu_layers=-1, asl_budget=0.2)
    text = "The grass is green. " * 100 + "The special magic number is 4815162. " + "The sky is blue. " * 100
    answer = llm.create_chat_completion(
        [{"role": "user", "content": text + "What is the special magic number?"}], max_tokens=32, temperature=0
    )
    assert "4815162" in answer["choices"][0]["message"]["content"]
    assert llm.last_prefill.pruned
