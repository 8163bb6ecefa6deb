"""Nothing pruned is stock llama.cpp, bit for bit: after the prefill and after every token decoded then."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.native.session import Session
from asl_gguf.policies import make_policy
from harness import F16, F32, KV_NAMES, Q8_0, Context, Model, Options, assert_same, prompt
from pairs import pairs
from prefills import ON_ANY_MODEL
from tiny_gguf import ARCHITECTURES

ANSWER = [70, 71, 72, 73]
WINDOW = 16
# from 64 queries on, flash attention rounds otherwise: chunks that end elsewhere than stock's would show
N_UBATCH = 64
N_BATCH = 72  # chunks of 64, 8, 64, 8, ...

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0], ids=KV_NAMES.get)


def stock_logits(context: Context, tokens: list[int]) -> list[np.ndarray]:
    context.prefill(tokens)
    return context.continuation(ANSWER)


def check_lengths(model: Model, options: Options, lengths: tuple[int, ...]) -> None:
    """Policy none against stock at each prompt length, one context and session for all of them."""
    policy = make_policy("none")
    with model.context(options) as stock, model.context(options) as ours:
        session = ours.session()
        for n_tokens in lengths:
            tokens = prompt(n_tokens)
            report = prefill(session, tokens, policy, n_tokens)
            assert_same(ours.continuation(ANSWER), stock_logits(stock, tokens), f"{options}, {n_tokens} tokens")
            assert not report.pruned and report.kept_tokens == n_tokens


@with_kv
@with_flash
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_none_is_stock(load_tiny, architecture, flash, kv):
    lengths = (1, WINDOW + 1, N_UBATCH - 1, N_UBATCH, N_UBATCH + 1, 2 * N_UBATCH + 7)
    check_lengths(load_tiny(architecture), Options(n_batch=N_UBATCH, n_ubatch=N_UBATCH, flash=flash, kv=kv), lengths)


@pairs(architecture=ARCHITECTURES, flash=[False, True], kv=[F16, Q8_0])
def test_batch_is_no_multiple_of_ubatch(load_tiny, architecture, flash, kv):
    lengths = (N_BATCH - 1, N_BATCH + 1, 2 * N_BATCH + N_UBATCH + 1)
    check_lengths(load_tiny(architecture), Options(n_batch=N_BATCH, n_ubatch=N_UBATCH, flash=flash, kv=kv), lengths)


@with_kv
@with_flash
def test_device_gather_of_whole_words(load_tiny, flash, kv):
    """Heads of 64 elements: 68 bytes in q8_0, a multiple of 4. 300 tokens: past the first 256 cells."""
    model = load_tiny("llama", head_dim=64)
    check_lengths(model, Options(n_batch=N_UBATCH, n_ubatch=N_UBATCH, flash=flash, kv=kv), (1, N_UBATCH + 1, 300))


@with_flash
def test_f32_cache(load_tiny, flash):
    options = Options(n_batch=N_UBATCH, n_ubatch=N_UBATCH, flash=flash, kv=F32)
    check_lengths(load_tiny("llama"), options, (1, N_UBATCH + 1, 140))


@pytest.mark.parametrize("weight_type", ["F16", "Q8_0", "Q4_1"])
def test_quantised_weights(load_tiny, weight_type):
    model = load_tiny("llama", weight_type=weight_type)
    check_lengths(model, Options(n_batch=N_UBATCH, n_ubatch=N_UBATCH), (1, N_UBATCH + 1, 140))


def test_unified_cache_of_several_sequences(load_tiny):
    options = Options(n_batch=N_UBATCH, n_ubatch=N_UBATCH, n_seq_max=4, unified=True)
    check_lengths(load_tiny("llama"), options, (N_UBATCH + 1, 140))


@with_flash
@pytest.mark.parametrize("name", ON_ANY_MODEL)
def test_every_policy_that_keeps_all(load_tiny, name, flash):
    options = Options(flash=flash)
    model, policy = load_tiny("llama"), make_policy(name)
    with model.context(options) as stock, model.context(options) as ours:
        session = ours.session()
        for n_tokens in (policy.window + 1, 150):
            tokens = prompt(n_tokens)
            report = prefill(session, tokens, policy, n_tokens)
            assert_same(ours.continuation(ANSWER), stock_logits(stock, tokens), f"{name}, {n_tokens} tokens")
            assert report.policy == policy.name and not report.pruned


def run_keeping_all(session: Session, tokens: list[int], last_layer: int) -> None:
    """Layers 0..last_layer one by one with scores, then all tokens are "selected"."""
    session.begin(tokens, WINDOW)
    for _ in range(last_layer + 1):
        session.run(1, True)
        session.keep_rows(None)
    session.keep_tokens(np.arange(len(tokens)))
    session.finish()


@pairs(architecture=ARCHITECTURES, flash=[False, True], kv=[F16, Q8_0])
def test_selection_of_all_tokens(load_tiny, architecture, flash, kv):
    model = load_tiny(architecture)
    options = Options(n_batch=N_BATCH, n_ubatch=N_UBATCH, flash=flash, kv=kv)
    tokens = prompt(150)
    with model.context(options) as stock, model.context(options) as ours:
        session, expected = ours.session(), stock_logits(stock, tokens)
        for last_layer in (0, model.n_layer // 2, model.n_layer - 2):
            run_keeping_all(session, tokens, last_layer)
            assert_same(ours.continuation(ANSWER), expected, f"selection at layer {last_layer}")
            assert ours.get_state() == stock.get_state(), "the saved states differ"


def test_finish_without_running_a_layer(load_tiny):
    model, tokens = load_tiny("llama"), prompt(110)
    with model.context() as stock, model.context() as ours:
        session = ours.session()
        session.begin(tokens, WINDOW)
        session.finish()
        assert_same(ours.continuation(ANSWER), stock_logits(stock, tokens))


def test_dequantised_weights_of_exact_types(load_tiny):
    """No mode changes weights that are stored as F16. `auto` gives stock's bits; the others, stock's but for the attention,
    which `int8` computes with integers where the processor gains by it."""
    model, tokens = load_tiny("llama", weight_type="F16"), prompt(110)
    with model.context() as stock, model.context() as ours:
        expected, found = stock_logits(stock, tokens), []
        session = ours.session()
        for dequant in ("auto", "all", "int8", "int16"):
            session.set_dequant(dequant)
            report = prefill(session, tokens, make_policy("none"), len(tokens))
            assert report.n_dequantised == 0
            found.append(ours.continuation(ANSWER))
    assert_same(found[0], expected)
    assert_same(found[3], found[1])
    for other in found[1:3]:
        difference = max(np.abs(a - b).max() for a, b in zip(other, expected, strict=True))
        assert (0 < difference < 0.05) if report.attention.startswith("own") else difference == 0


@pytest.mark.parametrize("mode", ["all", "int8", "int16"])
@pytest.mark.parametrize("weight_type", ["Q8_0", "Q4_1"])
def test_dequantised_weights_are_put_back(tiny_model, weight_type, mode):
    """Expanding or packing changes a prompt's logits a little, and nothing of what is decoded or prefilled later."""
    path, tokens, policy = tiny_model("llama", weight_type=weight_type), prompt(110), make_policy("none")
    with closing(Model(path, repack=False)) as model, model.context() as stock, model.context() as ours:
        session, expected = ours.session(), stock_logits(stock, tokens)
        session.set_dequant(mode)
        report = prefill(session, tokens, policy, len(tokens))
        assert report.n_dequantised > 0 and session.info().host_bytes == 0
        difference = np.abs(ours.logits() - expected[0]).max()
        assert 0 < difference < 0.5, f"largest difference {difference}, of logits with a deviation of about 2"
        assert np.array_equal(ours.prefill(tokens), expected[0]), "stock decoding after a session with expanded weights"

        session.set_dequant("off")
        report = prefill(session, tokens, policy, len(tokens))
        assert report.n_dequantised == 0
        assert_same(ours.continuation(ANSWER), expected)
