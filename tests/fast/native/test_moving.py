"""A sequence prefilled in a context of its own moves into one that others live in (asl_context_move)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import ContextFullError, OptionError
from asl_gguf.native import moving
from asl_gguf.policies import PyramidInfer, SnapKV, SpanASL
from harness import F16, F32, KV_NAMES, Q8_0, Context, Options, assert_same, llama_cpp, prompt
from pairs import pairs
from sequences import Sequences, plain_state
from tiny_gguf import ARCHITECTURES, SLIDING

WINDOW = 8
N_KEPT = 50
TOKENS = prompt(180)
OTHERS = {0: prompt(40, seed=1), 2: prompt(33, seed=2)}
OWN = Options(n_ctx=256, n_batch=64, n_ubatch=64)
SHARED = Options(n_ctx=768, n_batch=64, n_ubatch=64, n_seq_max=3)
SEQ = 1

with_streams = pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])


def prune(context: Context, policy=None) -> None:
    """A pruned prompt, whose positions have gaps, and a token of its answer."""
    policy = policy or SpanASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2.0)
    report = prefill(context.session(1024), TOKENS, policy, N_KEPT)
    assert report.pruned


def open_pair(model, unified: bool, **options) -> tuple[Context, Context]:
    return model.context(replace(OWN, **options)), model.context(replace(SHARED, unified=unified, **options))


def fill(shared: Context, holes: bool = False) -> Sequences:
    """Other sequences; with holes among their cells."""
    live = Sequences(shared)
    if holes:
        live.decode(SEQ, prompt(7, seed=3))
    for seq, tokens in OTHERS.items():
        live.decode(seq, tokens)
        if holes:
            live.decode(SEQ, prompt(7, seed=4))
    if holes:
        live.remove(SEQ)
    return live


@pairs(
    architecture=["llama", "qwen3", "phi3", "gemma3", "gpt-oss", "cohere2"],
    unified=[True, False],
    flash=[False, True],
    holes=[False, True],
)
def test_move(load_tiny, architecture, unified, flash, holes):
    """Rows and positions byte for byte, logits and answer; others and the source are left as they were."""
    model = load_tiny(architecture)
    own, shared = open_pair(model, unified, flash=flash)
    with own, shared, model.context(replace(SHARED, unified=unified, flash=flash)) as beside:
        live, without = fill(shared, holes), fill(beside, holes)
        without.decode(SEQ, TOKENS[:N_KEPT])  # of no matter what, in the same cells
        prune(own)
        before = {seq: live.state(seq) for seq in OTHERS}
        source, logits = own.get_state(), own.logits()
        free = moving.free_cells(shared.handle, SEQ)
        moving.move(own.handle, shared.handle, SEQ)
        assert_same([shared.logits()], [logits], "logits of the last token")
        assert free - moving.free_cells(shared.handle, SEQ) == N_KEPT
        assert own.get_state() == source and live.next_pos(SEQ) == len(TOKENS)
        assert live.plain_state(SEQ) == plain_state(source)
        for seq in OTHERS:
            assert live.state(seq) == before[seq]
            (tokens, found), (expected_tokens, expected) = live.greedy(seq, 70, 4), without.greedy(seq, 70, 4)
            if architecture in SLIDING and unified:  # sliding layers have fewer cells of it than of any other prompt
                np.testing.assert_allclose(found, expected, atol=0.02)
                assert tokens == expected_tokens
            else:
                assert_same(found, expected, f"sequence {seq}")
        found, alone = [], []
        for token in (70, 71, 72, 73):
            found.append(live.decode(SEQ, [token]))
            live.decode(0, [token])
            alone.append(own.decode([token]))
        if unified or holes:  # sums follow the cells
            np.testing.assert_allclose(found, alone, atol=0.02)
        else:
            assert_same(found, alone)
        assert np.array_equal(np.argmax(found, 1), np.argmax(alone, 1))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt-oss", "cohere2"])
def test_other_cells_are_another_order_of_sums(load_tiny, architecture):
    """And nothing else: with K and V in F32 the logits differ by rounding alone."""
    own, shared = open_pair(load_tiny(architecture), True, kv=F32)
    with own, shared:
        live = fill(shared, holes=True)
        prune(own)
        moving.move(own.handle, shared.handle, SEQ)
        found, alone = (
            np.array([decode(token) for token in (70, 71, 72, 73)])
            for decode in (lambda token: live.decode(SEQ, [token]), lambda token: own.decode([token]))
        )
        np.testing.assert_allclose(found, alone, atol=2e-3 if architecture == "gemma3" else 1e-4)


@with_streams
@pytest.mark.parametrize("flash, kv", [(False, F16), (True, F16), (True, Q8_0), (False, F32), (False, Q8_0)])
def test_types(load_tiny, unified, flash, kv):
    """V stored transposed, F32, and rows of q8_0, whose bytes are no multiple of 4."""
    model = load_tiny("llama")
    own, shared = open_pair(model, unified, flash=flash, kv=kv)
    with own, shared:
        live = fill(shared, holes=True)
        prune(own, SnapKV(window=WINDOW))  # other tokens in every head
        moving.move(own.handle, shared.handle, SEQ)
        assert live.plain_state(SEQ) == plain_state(own.get_state()), KV_NAMES[kv]


@with_streams
@pytest.mark.parametrize("architecture", ARCHITECTURES + SLIDING)
def test_a_whole_prompt_is_stock(load_tiny, architecture, unified):
    """With nothing pruned, the sequence is what llama_decode makes of it in that context: bit for bit in a stream of its
    own; in a unified cache sums follow the cells."""
    model, tokens = load_tiny(architecture), TOKENS[:150]
    own, shared = open_pair(model, unified, kv=F32 if unified else F16)
    with own, shared, model.context(shared.options) as stock:
        live, expected = fill(shared), fill(stock)
        own.session().begin(tokens, WINDOW)
        own._sessions[-1].finish()
        moving.move(own.handle, shared.handle, SEQ)
        expected.decode(SEQ, tokens)
        found, wanted = live.greedy(SEQ, 70, 5), expected.greedy(SEQ, 70, 5)
        if unified:
            assert found[0] == wanted[0]
            np.testing.assert_allclose(found[1], wanted[1], atol=2e-3)
        else:
            assert live.state(SEQ) == expected.state(SEQ)
            assert_same(found[1], wanted[1])


@with_streams
@pytest.mark.parametrize("swa_full", [True, False])
def test_sliding_cells(load_tiny, unified, swa_full):
    """Few cells of sliding layers: those that their sequence sees are never taken, and its answers stay the same."""
    model = load_tiny("gemma3")
    own, shared = open_pair(model, unified, kv=F32, swa_full=swa_full)
    with own, shared, model.context(replace(SHARED, unified=unified, kv=F32)) as whole:
        live, expected = Sequences(shared), Sequences(whole)
        for seq in (0, 2):
            for sequences in (live, expected):
                sequences.decode(seq, prompt(220, seed=seq))
        own.prefill(TOKENS)  # stock, with the cells that its sliding layers kept
        moving.move(own.handle, shared.handle, SEQ)
        expected.decode(SEQ, TOKENS)
        for seq in (0, SEQ, 2):
            found, whole_cells = live.greedy(seq, 70, 8), expected.greedy(seq, 70, 8)
            assert found[0] == whole_cells[0], f"sequence {seq}"
            np.testing.assert_allclose(found[1], whole_cells[1], atol=2e-3)


def refused(own: Context, shared: Context, match: str, error: type[Exception] = OptionError, seq: int = SEQ) -> None:
    """move fails and changes nothing."""
    live = Sequences(shared)
    before = [own.get_state(), *(live.state(s) for s in range(3))]
    logits = shared.logits()
    with pytest.raises(error, match=match):
        moving.move(own.handle, shared.handle, seq)
    assert [own.get_state(), *(live.state(s) for s in range(3))] == before
    assert_same([shared.logits()], [logits])


@with_streams
def test_refusals(load_tiny, unified):
    model = load_tiny("llama")
    own, shared = open_pair(model, unified)
    with own, shared:
        live = fill(shared)
        refused(own, shared, "expected a sequence with tokens to move, got sequence 0 without")
        session = own.session()
        session.begin(TOKENS, WINDOW)
        session.run(1, False)
        refused(own, shared, "expected a sequence with tokens to move, got sequence 0 without")
        prune(own)
        refused(own, shared, "expected an empty sequence 0; remove its cells first", seq=0)
        refused(own, shared, "expected a sequence from 0 to 2, got 3", seq=3)
        refused(own, shared, "expected a sequence from 0 to 2, got -1", seq=-1)
        with pytest.raises(OptionError, match="expected two contexts, got the same one twice"):
            moving.move(own.handle, own.handle, 0)
        with pytest.raises(OptionError, match="expected a sequence from 0 to 2, got 7"):
            moving.move(shared.handle, own.handle, 0, source_id=7)
        with model.context(replace(OWN, flash=True)) as flash:
            flash.prefill(TOKENS)
            refused(flash, shared, "expected flash attention in both contexts or in none")
        with model.context(replace(OWN, kv=Q8_0)) as quantised:
            quantised.prefill(TOKENS)
            refused(
                quantised, shared, "expected K and V of types f16 and f16 as in the other context, got q8_0 and f16"
            )
        with load_tiny("qwen3").context(OWN) as other:
            other.prefill(TOKENS)
            refused(other, shared, "expected two contexts of one model, got contexts of two")
        prune(own, PyramidInfer(min_context=12))
        refused(own, shared, "expected layers that keep equal numbers of rows in the context that was prefilled, layer")
        prune(own)
        moving.move(own.handle, shared.handle, SEQ)
        refused(own, shared, "expected an empty sequence 1")
        live.remove(SEQ)
        moving.move(own.handle, shared.handle, SEQ)
        for context, seq in ((shared, 3), (shared, -1)):
            with pytest.raises(OptionError, match="expected a context with a KV cache and one of its sequences"):
                moving.free_cells(context.handle, seq)


@with_streams
@with_flash
@pytest.mark.parametrize("architecture", ["llama", *SLIDING])
def test_back_and_forth(load_tiny, architecture, unified, flash):
    """A sequence that lives among others moves out as it is, in the order of its tokens, and in again."""
    own, shared = open_pair(load_tiny(architecture), unified, flash=flash)
    with own, shared:
        live = fill(shared, holes=True)
        prune(own)
        moving.move(own.handle, shared.handle, SEQ)
        for token in (70, 71, 72):
            live.decode(SEQ, [token])
            own.decode([token])
        others = {seq: live.state(seq) for seq in OTHERS}
        state, n_free = live.plain_state(SEQ), moving.free_cells(shared.handle, SEQ)
        own.clear()
        moving.move(shared.handle, own.handle, 0, with_logits=False, source_id=SEQ)
        positions = own.cells().positions if architecture == "llama" else None
        assert positions == (sorted(positions) if positions else None)
        live.remove(SEQ)
        moving.move(own.handle, shared.handle, SEQ, with_logits=False)
        assert live.plain_state(SEQ) == state and moving.free_cells(shared.handle, SEQ) == n_free
        assert {seq: live.state(seq) for seq in OTHERS} == others


def test_without_logits(load_tiny):
    """A state that was loaded has none; those of the target stay."""
    own, shared = open_pair(load_tiny("llama"), True)
    with own, shared:
        live = fill(shared)
        prune(own)
        state, before = own.get_state(), shared.logits()
        with load_tiny("llama").context(OWN) as loaded:
            loaded.set_state(state)
            with pytest.raises(OptionError, match="expected logits in the context that was prefilled, it has none"):
                moving.move(loaded.handle, shared.handle, SEQ)
            moving.move(loaded.handle, shared.handle, SEQ, with_logits=False)
        assert_same([shared.logits()], [before])
        assert live.next_pos(SEQ) == len(TOKENS)


@with_streams
def test_too_few_cells(load_tiny, unified):
    """One too few is refused; as many as are free go in."""
    model = load_tiny("llama")
    own, shared = open_pair(model, unified)
    with own, shared:
        live = Sequences(shared)
        n_cells = moving.free_cells(shared.handle, SEQ)
        assert n_cells == (768 if unified else 256)
        own.prefill(TOKENS)
        if unified:
            live.decode(0, prompt(n_cells - len(TOKENS) + 1))
            assert moving.free_cells(shared.handle, SEQ) == len(TOKENS) - 1
            refused(own, shared, "expected 180 free cells for sequence 1, found 179; remove", ContextFullError)
            live.remove(0, n_cells - len(TOKENS))
        moving.move(own.handle, shared.handle, SEQ)
        assert moving.free_cells(shared.handle, SEQ) == (0 if unified else 256 - len(TOKENS))
        live.remove(SEQ)
        with model.context(replace(OWN, n_ctx=1024)) as large:
            large.prefill(prompt(800))
            refused(large, shared, "expected 800 free cells for sequence 1, found", ContextFullError)


def test_a_shift_that_waits(load_tiny):
    """llama_memory_seq_add rotates K at the next decode; a move comes after it."""
    model = load_tiny("llama")
    own, shared = open_pair(model, False, kv=F32)
    with own, shared:
        own.prefill(TOKENS)
        llama_cpp.llama_memory_seq_rm(own.memory, 0, 0, 30)
        llama_cpp.llama_memory_seq_add(own.memory, 0, 30, -1, -30)
        moving.move(own.handle, shared.handle, SEQ)
        np.testing.assert_allclose(Sequences(shared).decode(SEQ, [70]), own.decode([70]), atol=1e-4)
