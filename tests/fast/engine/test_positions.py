"""Prompts that begin at another position than 0: stock llama.cpp at those positions, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import OptionError
from asl_gguf.policies import GemFilter, Policy, SpecPrefill, TwoPassASL, make_policy
from harness import F16, KV_NAMES, Q8_0, Context, Options, assert_same, llama_cpp, prompt
from tiny_gguf import ARCHITECTURES

N_CTX = 1024
WINDOW = 8
ANSWER = [70, 71, 72]
OPTIONS = [
    Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv) for flash, kv in ((False, F16), (True, Q8_0))
]

with_options = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: f"{'flash' if o.flash else 'plain'}-{KV_NAMES[o.kv]}"
)


def decode_at(context: Context, tokens: Sequence[int], first_pos: int) -> np.ndarray:
    """Stock llama.cpp: tokens into an empty cache, from a position on; returns the last one's logits."""
    context.clear()
    n_batch = context.options.n_batch
    for begin in range(0, len(tokens), n_batch):
        part = tokens[begin : begin + n_batch]
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        try:
            batch.n_tokens = len(part)
            for row, token in enumerate(part):
                batch.token[row], batch.pos[row] = token, first_pos + begin + row
                batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, 0, row == len(part) - 1
            assert llama_cpp.llama_decode(context.handle, batch) == 0
        finally:
            llama_cpp.llama_batch_free(batch)
    return context.logits()


@with_options
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_at_an_offset(load_tiny, architecture, options):
    """In one go, and layer by layer."""
    model, tokens = load_tiny(architecture), prompt(110)
    with model.context(options) as stock, model.context(options) as ours:
        session = ours.session(N_CTX)
        for first_pos in (1, 700):
            decode_at(stock, tokens, first_pos)
            state, expected = stock.get_state(), stock.continuation(ANSWER)
            for n_single in (0, 2, model.n_layer):
                session.begin(tokens, WINDOW, first_pos)
                for _ in range(n_single):
                    session.run(1, True)
                    session.keep_rows(None)
                session.finish()
                assert ours.get_state() == state
                assert_same(ours.continuation(ANSWER), expected, f"from {first_pos}, {n_single} layers one by one")


def test_the_last_position(load_tiny):
    """Up to n_ctx and no further; what is refused leaves the session as it was."""
    with load_tiny("llama").context(OPTIONS[0]) as context, load_tiny("llama").context(OPTIONS[0]) as stock:
        session = context.session(N_CTX)
        for first_pos in (-1, N_CTX - 60 + 1, N_CTX, 2**31 - 1):
            message = f"expected a first position of 0 to {N_CTX - 60}, got {first_pos}"
            with pytest.raises(OptionError, match=message):
                session.begin(prompt(60), WINDOW, first_pos)
            assert session.info().n_tokens == 0
        session.begin(prompt(60), WINDOW, N_CTX - 60)
        session.finish()
        assert np.array_equal(context.logits(), decode_at(stock, prompt(60), N_CTX - 60))
        assert llama_cpp.llama_memory_seq_pos_max(context.memory, 0) == N_CTX - 1


def test_tokens_dropped_at_an_offset(load_tiny):
    """Cells stand for the kept tokens' own positions."""
    kept = np.union1d(np.arange(0, 90, 3), np.arange(80, 90))
    with load_tiny("llama").context(OPTIONS[0]) as context:
        session = context.session(N_CTX)
        session.begin(prompt(90), WINDOW, 300)
        session.run(1, False)
        session.keep_rows(kept)
        session.keep_tokens(kept)
        session.finish()
        assert context.cells().positions == (300 + kept).tolist()
        assert np.isfinite(context.decode(ANSWER)).all()


TWO_PASSES: dict[str, tuple[Policy, int]] = {
    "gemfilter": (GemFilter(), 2),
    "gemfilter-first": (GemFilter(select_layer=0, kernel_size=1), 0),
    "gemfilter-last": (GemFilter(select_layer=5), 5),
    "specprefill": (SpecPrefill(), 4),
    "asl-two-pass": (TwoPassASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2), 2),
}


@with_options
@pytest.mark.parametrize("name", TWO_PASSES)
def test_a_second_pass_is_a_stock_prefill_of_the_kept_tokens(load_tiny, name, options):
    """At consecutive positions that end where the prompt's end."""
    policy, layer = TWO_PASSES[name]
    model, tokens, n_kept = load_tiny("llama"), prompt(300), 90
    with model.context(options) as stock, model.context(options) as ours:
        report = prefill(ours.session(N_CTX), tokens, policy, n_kept)
        assert (report.passes, report.selection_layer, report.kept_tokens) == (2, layer, n_kept)
        assert report.rows_by_layer == (n_kept,) * model.n_layer and report.pruned
        kept = list(report.selected)
        assert kept == sorted(set(kept)) and len(kept) == n_kept and kept[-1] == len(tokens) - 1
        decode_at(stock, [tokens[i] for i in kept], len(tokens) - n_kept)
        assert ours.get_state() == stock.get_state()
        assert_same(ours.continuation(ANSWER), stock.continuation(ANSWER))


def test_a_second_pass_that_nothing_asks_for(load_tiny):
    """tau = 0 selects nothing: every layer keeps rows of its own, and there is one pass."""
    with load_tiny("llama").context(OPTIONS[0]) as context:
        report = prefill(context.session(N_CTX), prompt(300), TwoPassASL(window=WINDOW, tau=0), 90)
        assert (report.passes, report.selection_layer, report.selected) == (1, None, ())
        assert report.rows_by_layer == (90,) * 6


@pytest.mark.parametrize("name", ["gemfilter", "specprefill", "asl-two-pass"])
def test_prompts_after_a_second_pass(load_tiny, name):
    """The next prompt begins at position 0 again."""
    with load_tiny("llama").context(OPTIONS[0]) as context, load_tiny("llama").context(OPTIONS[0]) as stock:
        session = context.session(N_CTX)
        prefill(session, prompt(300), TWO_PASSES[name][0], 90)
        prefill(session, prompt(100), make_policy("none"), 100)
        stock.prefill(prompt(100))
        assert context.get_state() == stock.get_state()
        assert_same(context.continuation(ANSWER), stock.continuation(ANSWER))
