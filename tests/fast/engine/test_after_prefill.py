"""After a pruned prefill the decode context is an ordinary one: llama.cpp's own calls work on it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.policies import ASL, Policy, SnapKV, SpanASL
from asl_gguf.report import PrefillReport
from harness import F16, F32, KV_NAMES, Q8_0, Context, Options, assert_same, llama_cpp, prompt
from prefills import FirstTokens

WINDOW = 8
N_TOKENS = 150
N_KEPT = 40
N_LAYER = 6
ANSWER = [70, 71, 72]

POLICIES = {
    "asl": ASL(window=WINDOW, min_layer=2, obs_layers=2, tau=0.95),
    "asl-span-never": SpanASL(window=WINDOW, min_layer=2, obs_layers=2, tau=0),
    "snapkv": SnapKV(window=WINDOW),
    "own": FirstTokens(window=WINDOW),
}
OPTIONS = {
    f"{'flash' if flash else 'plain'}-{KV_NAMES[kv]}": Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv)
    for flash in (False, True)
    for kv in (F16, Q8_0)
}

with_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def prune(context: Context, policy: Policy, n_tokens: int = N_TOKENS) -> PrefillReport:
    report = prefill(context.session(n_ctx=512), prompt(n_tokens), policy, N_KEPT)
    assert report.pruned and report.kept_tokens == N_KEPT
    return report


def position_range(context: Context, sequence: int = 0) -> tuple[int, int]:
    memory = context.memory
    return llama_cpp.llama_memory_seq_pos_min(memory, sequence), llama_cpp.llama_memory_seq_pos_max(memory, sequence)


@with_policy
def test_report(load_tiny, policy):
    with load_tiny("llama").context(Options()) as context:
        report = prune(context, policy)
        info = context.session().info()
    assert (report.prompt_tokens, report.budget_tokens, report.n_layer) == (N_TOKENS, N_KEPT, N_LAYER)
    assert report.policy == policy.name and report.reason is None
    assert report.kv_bytes == info.kv_bytes_decode == info.n_cells * info.kv_bytes_cell
    assert report.kv_bytes_prompt * N_TOKENS == report.kv_bytes_prompt_full * N_KEPT
    # one layer's K/V of 256 cells
    assert report.kv_bytes_prefill_peak == 256 * info.kv_bytes_cell // N_LAYER
    assert info.kv_bytes_prefill == info.host_bytes == 0
    selects = {"asl": range(3, N_LAYER - 1), "first-tokens": [0]}.get(policy.name, [None])
    assert report.selection_layer in selects
    assert all(0 < mass <= 1 for mass in report.attention_mass_by_layer)


@with_options
@with_policy
def test_generation_repeats(load_tiny, policy, options):
    answers = []
    for _ in range(2):
        with load_tiny("llama").context(options) as context:
            for _ in range(2):
                prune(context, policy)
                answers.append(context.greedy(12))
                assert position_range(context)[1] == N_TOKENS + 11
    assert answers == [answers[0]] * 4 and len(set(answers[0])) > 1


@with_policy
def test_cells(load_tiny, policy):
    with load_tiny("llama").context(Options()) as context:
        session = context.session()
        report = prefill(session, prompt(N_TOKENS), policy, N_KEPT)
        positions = context.cells().positions
        assert session.info().n_cells_used == len(positions) == N_KEPT
        assert position_range(context) == (positions[0], N_TOKENS - 1)
        assert positions == sorted(set(positions)) and positions[-WINDOW:] == list(range(N_TOKENS - WINDOW, N_TOKENS))
        if policy.name == "first-tokens":
            assert positions[:-WINDOW] == list(range(N_KEPT - WINDOW)) and report.selection_layer == 0
        context.decode(ANSWER)
        assert context.cells().positions == [*positions, N_TOKENS, N_TOKENS + 1, N_TOKENS + 2]


@with_options
@with_policy
def test_state_moves_to_another_context(load_tiny, policy, options):
    model = load_tiny("llama")
    with model.context(options) as context, model.context(options) as other:
        prune(context, policy)
        state = context.get_state()
        other.set_state(state)
        assert other.get_state() == state
        expected = [context.decode([token]) for token in ANSWER]
        assert_same([other.decode([token]) for token in ANSWER], expected, "the restored context")
        context.set_state(state)
        assert_same([context.decode([token]) for token in ANSWER], expected, "the same context, set back")


@with_options
@with_policy
def test_a_tail_is_removed_and_decoded_again(load_tiny, policy, options):
    with load_tiny("llama").context(options) as context:
        prune(context, policy)
        first = [context.decode([token]) for token in ANSWER]
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, N_TOKENS, -1)
        assert position_range(context)[1] == N_TOKENS - 1
        assert_same([context.decode([token]) for token in ANSWER], first, "after seq_rm")


@with_policy
def test_a_second_prompt_forgets_the_first(load_tiny, policy):
    model = load_tiny("llama")
    with model.context(Options()) as context, model.context(Options()) as fresh:
        prune(context, policy, n_tokens=200)
        context.decode(ANSWER)
        for each in (context, fresh):
            prune(each, policy)
        assert context.get_state() == fresh.get_state()
        assert_same(context.continuation(ANSWER), fresh.continuation(ANSWER))


@with_policy
def test_stock_prefill_after_a_pruned_one(load_tiny, policy):
    """Cleared, the context serves plain llama_decode again."""
    model = load_tiny("llama")
    with model.context(Options()) as context, model.context(Options()) as stock:
        prune(context, policy)
        tokens = prompt(100, seed=2)
        assert np.array_equal(context.prefill(tokens), stock.prefill(tokens))
        assert context.greedy(5) == stock.greedy(5)


def decode_in_sequences(context: Context, position: int, token_of: dict[int, int]) -> dict[int, np.ndarray]:
    """One token for each sequence in one batch; logits by sequence."""
    batch = llama_cpp.llama_batch_init(len(token_of), 0, 1)
    try:
        batch.n_tokens = len(token_of)
        for row, (sequence, token) in enumerate(token_of.items()):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        assert llama_cpp.llama_decode(context.handle, batch) == 0
        return {sequence: context.logits(row) for row, sequence in enumerate(token_of)}
    finally:
        llama_cpp.llama_batch_free(batch)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("architecture", ["llama", "gpt-oss"])
@with_policy
def test_copies_in_other_sequences(load_tiny, policy, architecture, flash):
    """One pruned prompt serves four sequences of a unified cache."""
    options = Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=F32, n_seq_max=4, unified=True)
    with load_tiny(architecture).context(options) as context:
        prune(context, policy)
        expected = context.decode(ANSWER[:1])
        assert llama_cpp.llama_memory_seq_rm(context.memory, 0, N_TOKENS, -1)
        for sequence in (1, 2, 3):
            llama_cpp.llama_memory_seq_cp(context.memory, 0, sequence, -1, -1)
            assert position_range(context, sequence) == position_range(context)

        for sequence, logits in decode_in_sequences(context, N_TOKENS, dict.fromkeys(range(4), ANSWER[0])).items():
            # the tokens lie in different cells, so sums run in another order; stock differs as much
            tolerance = 5e-3 if flash else 1e-4
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance, err_msg=f"sequence {sequence}")
            assert position_range(context, sequence)[1] == N_TOKENS

        later = decode_in_sequences(context, N_TOKENS + 1, {sequence: 80 + sequence for sequence in range(4)})
        assert all(np.abs(later[i] - later[0]).max() > 0.1 for i in (1, 2, 3))


def test_positions_go_on_past_the_cells(load_tiny):
    """256 cells, positions up to 512: the answer to a prompt of 400 tokens starts at position 400."""
    with load_tiny("llama").context(Options(n_ctx=256)) as context:
        prune(context, POLICIES["asl"], n_tokens=400)
        context.greedy(100)
        assert position_range(context)[1] == 499
        assert context.session().info().n_cells_used == N_KEPT + 100


def test_lora_adapter_of_the_context(load_tiny, tmp_path):
    """The prefill follows the adapters that the decode context has when it begins."""
    model, tokens = load_tiny("llama"), prompt(90)
    write_lora(tmp_path / "lora.gguf")
    with model.context(Options()) as stock, model.context(Options()) as ours:
        session = ours.session()
        plain = stock.prefill(tokens)
        adapter = llama_cpp.llama_adapter_lora_init(model.handle, str(tmp_path / "lora.gguf").encode())
        assert adapter
        for context in (stock, ours):
            set_lora(context, adapter)
        expected = stock.prefill(tokens)
        assert np.abs(expected - plain).max() > 1e-2
        session.begin(tokens, WINDOW)
        for _ in range(N_LAYER):
            session.run(1, False)
            session.keep_rows(None)
        session.finish()
        assert_same(ours.continuation(ANSWER), [expected, *(stock.decode([token]) for token in ANSWER)])


def set_lora(context: Context, adapter: int) -> None:
    adapters, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
    assert llama_cpp.llama_set_adapters_lora(context.handle, adapters, 1, scales) == 0


def write_lora(path: Path) -> None:
    """A random adapter of rank 4 for the queries and values of every layer of the tiny llama model."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for layer in range(N_LAYER):
        for name, n_out in (("attn_q", 128), ("attn_v", 64)):
            for part, shape in (("lora_a", (4, 128)), ("lora_b", (n_out, 4))):
                values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
                writer.add_tensor(f"blk.{layer}.{name}.weight.{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
