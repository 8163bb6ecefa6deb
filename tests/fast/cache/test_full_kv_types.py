"""`asl_full_kv="q8_0"` and its like: K/V of all tokens quantised in host memory."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import closing
from typing import Any

import gguf
import numpy as np
import pytest

from asl_gguf import Llama, OptionError, StateError
from asl_gguf.cache.host_kv import HostKV
from asl_gguf.cache.packing import KINDS, Packing
from asl_gguf.cli import main
from asl_gguf.policies import Full, SnapKV
from full_kv_prompts import DOCUMENT, EARLIER, N_ANSWER, N_BORDER, N_TOKENS, OTHER, QUESTIONS, keep, kept_bytes
from tiny_llama import N_LAYER, cells, greedy, logits

F32, F16, BF16, Q8_0 = 0, 1, 30, 8
SIZES = {F32: 4, F16: 2, BF16: 2}
ROUNDING = {F32: 0.0, F16: 2**-11, BF16: 2**-8}
"""of a value in the cache, relative"""
BLOCK_BYTES = {"q8_0": 34}
STEPS = {"q8_0": 127}
"""of half the range of a block's values, roughly"""
WIDTHS = ((64, 96), (32, 32))


def packing(kind: str, type_k: int = F16, type_v: int = F16, widths: Any = WIDTHS) -> Packing:
    return Packing(kind, type_k, type_v, [(k * SIZES[type_k], v * SIZES[type_v]) for k, v in widths])


def as_cached(values: np.ndarray, kind: int) -> np.ndarray:
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind)).view(np.uint8)


def as_floats(rows: np.ndarray, kind: int) -> np.ndarray:
    return gguf.quants.dequantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType(kind))


@pytest.mark.parametrize("type_k, type_v", [(F16, F16), (F32, F32), (BF16, BF16), (F32, F16), (F16, BF16)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_rounded_to_the_steps_of_their_block(kind, type_k, type_v):
    """K and V of each token for themselves, in every layer; sizes are those of ggml's blocks."""
    rng, target = np.random.default_rng(0), packing(kind, type_k, type_v)
    for layer, (n_k, n_v) in enumerate(WIDTHS):
        scales = np.exp(rng.standard_normal((50, 1)))  # of the tokens
        keys, values = ((rng.standard_normal((50, n)) * scales).astype(np.float32) for n in (n_k, n_v))
        rows = np.hstack([as_cached(keys, type_k), as_cached(10 * values, type_v)])
        packed = target.pack(layer, rows)
        assert packed.dtype == np.uint8 and packed.shape == (50, (n_k + n_v) // 32 * BLOCK_BYTES[kind])
        found = target.unpack(layer, packed)
        assert found.dtype == np.uint8 and found.shape == rows.shape
        at, largest = n_k * SIZES[type_k], 0.0
        for part, cached in ((slice(None, at), type_k), (slice(at, None), type_v)):
            before, after = (as_floats(x[:, part], cached).reshape(50, -1, 32) for x in (rows, found))
            peak = np.abs(before).max(axis=-1, keepdims=True)
            # a half step; a whole one at the end that asymmetric types have no value for; scales are f16
            step = peak / STEPS[kind] * 0.5
            allowed = step * 1.001 + peak * (2**-10 + ROUNDING[cached])
            errors = np.abs(after - before)
            assert (errors <= allowed).all()
            largest = max(largest, float((errors / allowed).max()))
        assert largest > 0.5  # the bound is no idle one


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_expanded_packs_to_much_the_same(kind):
    """Zeros stay zeros; a second time adds no more than the rounding of the scale."""
    target = packing(kind)
    zeros = np.zeros((3, 320), np.uint8)
    assert not as_floats(target.unpack(0, target.pack(0, zeros)), F16).any()
    values = np.random.default_rng(1).standard_normal((20, 160)).astype(np.float32)
    once = target.unpack(0, target.pack(0, as_cached(values, F16)))
    twice = target.unpack(0, target.pack(0, once))
    np.testing.assert_allclose(as_floats(twice, F16), as_floats(once, F16), atol=0.01)


# in the engine


@pytest.fixture(name="packed")
def make_packed(load_tiny) -> Any:
    """`packed(kind)`: a `HostKV` for the contexts of test_full_kv."""
    return lambda kind: HostKV(packing(kind, widths=[(64, 64)] * N_LAYER))


@pytest.mark.parametrize("contexts", [False, True], ids=["plain", "flash"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_a_past_of_rounded_rows(contexts, packed, kind):
    """The first prompt is as ever. The next one has what it shares with it rounded, the rest computed from that."""
    exact, rounded = HostKV(), packed(kind)
    for context, kept in zip(contexts, (exact, rounded)):
        keep(context, kept, SnapKV(), EARLIER)
    assert contexts[0].get_state() == contexts[1].get_state()
    assert rounded.n_bytes == exact.n_bytes // 64 * BLOCK_BYTES[kind]
    expected = packing(kind, widths=[(64, 64)] * N_LAYER)
    for layer in range(N_LAYER):
        rows = expected.unpack(layer, expected.pack(layer, exact.layers[layer]))
        assert np.array_equal(rounded.rows(layer, len(EARLIER)), rows)
    earlier = [layer[:N_BORDER].copy() for layer in rounded.layers]

    reports = [keep(context, kept, Full()) for context, kept in zip(contexts, (exact, rounded))]
    assert [report.reused_tokens for report in reports] == [N_BORDER] * 2
    assert reports[1].full_kv_bytes == rounded.n_bytes == reports[0].full_kv_bytes // 64 * BLOCK_BYTES[kind]
    # rows that were there are not rounded again
    assert all(np.array_equal(new[:N_BORDER], old) for new, old in zip(rounded.layers, earlier))
    plain, found = (context.cells() for context in contexts)
    for layer in range(N_LAYER):
        rows = rounded.rows(layer, N_BORDER).reshape(N_BORDER, 2, 2, -1)  # K and V, heads, bytes of a head
        assert np.array_equal(found.keys[layer][:N_BORDER], rows[:, 0])
        assert np.array_equal(found.values[layer][:N_BORDER], rows[:, 1])
    # layer 0 of the new tokens depends on no other token
    assert np.array_equal(found.keys[0][N_BORDER:N_TOKENS], plain.keys[0][N_BORDER:N_TOKENS])
    difference = np.abs(contexts[0].logits() - contexts[1].logits()).max()
    assert 0 < difference < 0.2


# in `Llama`


@pytest.fixture(params=["q8_0"])
def kind(request) -> str:
    return request.param


def test_follow_up_questions(llm_full, kind):
    llm, exact = llm_full(asl_full_kv=kind), llm_full()
    tokens = DOCUMENT + QUESTIONS[0]
    first = greedy(llm, tokens, N_ANSWER)
    assert first == greedy(exact, tokens, N_ANSWER) and np.array_equal(logits(llm), logits(exact))
    assert llm.last_prefill.full_kv_bytes == kept_bytes(llm.last_prefill, BLOCK_BYTES[kind], 64)
    for turn, question in enumerate(QUESTIONS[1:3]):
        tokens = tokens + first + question
        for target in (llm, exact):
            target.prefill(tokens)
        report = llm.last_prefill
        assert report.reused_tokens == len(tokens) - len(first + question)
        assert report.reason == "selected again for this turn, from K/V of all tokens" and report.pruned, turn
        assert report.kept_tokens == exact.last_prefill.kept_tokens
        shared = set(report.selected) & set(exact.last_prefill.selected)
        assert len(shared) >= (0.95 if kind == "q8_0" else 0.7) * report.kept_tokens
        difference = np.abs(logits(llm) - logits(exact)).max()
        assert 0 < difference < (0.2 if kind == "q8_0" else 3)
        for target in (llm, exact):
            target.eval(first)


def test_a_saved_prompt_holds_what_is_in_memory(llm_full, kind, tmp_path):
    """An object that reads the file answers bit for bit as the one that wrote it, and the file is smaller."""
    llm, other, exact = llm_full(asl_full_kv=kind), llm_full(asl_full_kv=kind), llm_full()
    for target, name in ((llm, "packed"), (exact, "exact")):
        target.prefill(OTHER)
        target.save_prompt(tmp_path / name)
    sizes = [(tmp_path / name).stat().st_size for name in ("exact", "packed")]
    n_exact, n_packed = exact.last_prefill.full_kv_bytes, llm.last_prefill.full_kv_bytes
    assert sizes[0] - sizes[1] == pytest.approx(n_exact - n_packed, abs=200)
    other.load_prompt(tmp_path / "packed")
    tokens = OTHER + QUESTIONS[1]
    for target in (llm, other):
        target.prefill(tokens)
    assert llm.last_prefill.reused_tokens == other.last_prefill.reused_tokens == len(OTHER)
    assert np.array_equal(logits(llm), logits(other)) and vars(cells(llm)).keys() == vars(cells(other)).keys()
    assert all(map(np.array_equal, cells(llm).keys + cells(llm).values, cells(other).keys + cells(other).values))
    assert llm._sequence.host.tokens == other._sequence.host.tokens == tuple(tokens)
    assert all(map(np.array_equal, llm._sequence.host.layers, other._sequence.host.layers))


@pytest.mark.parametrize("ours, theirs", [(True, "q8_0"), ("q8_0", True), (False, "q8_0")])
def test_states_of_another_type_are_refused(llm_full, tmp_path, ours, theirs):
    llm, other = llm_full(asl_full_kv=ours), llm_full(asl_full_kv=theirs)
    other.prefill(OTHER)
    other.save_prompt(tmp_path / "prompt")
    for load, saved in ((llm.load_prompt, tmp_path / "prompt"), (llm.load_state, other.save_state())):
        with pytest.raises(StateError, match=f"expected a state with asl_full_kv {ours!r}, got {theirs!r}"):
            load(saved)
    llm.prefill(OTHER)
    assert llm.last_prefill.reused_tokens == 0


@pytest.mark.parametrize("duplicate", [copy.copy, lambda llm: pickle.loads(pickle.dumps(llm))], ids=["copy", "pickle"])
def test_copies_keep_the_type(llm_full, duplicate):
    llm = llm_full(asl_full_kv="q8_0")
    llm.prefill(OTHER)
    with closing(duplicate(llm)) as other:
        other.prefill(OTHER)
        assert other.last_prefill.full_kv_bytes == llm.last_prefill.full_kv_bytes
        assert other._sequence.host.layers[0].shape == (len(OTHER), 128 // 32 * BLOCK_BYTES["q8_0"])


@pytest.mark.parametrize("types", [{"type_k": F32}, {"type_k": BF16, "type_v": F32, "flash_attn": True}], ids=str)
def test_other_types_of_the_cache(llm_full, types):
    llm, exact = llm_full(asl_full_kv="q8_0", **types), llm_full(**types)
    for target in (llm, exact):
        target.prefill(OTHER)
        target.prefill(OTHER[:-32] + QUESTIONS[0])
        assert target.last_prefill.reused_tokens == len(OTHER) - 32
    assert llm.last_prefill.full_kv_bytes == kept_bytes(llm.last_prefill, 34, {F32: 96, BF16: 96}[types["type_k"]])
    np.testing.assert_allclose(logits(llm), logits(exact), atol=0.3)


@pytest.mark.parametrize(
    "types, message",
    [
        ({"type_k": Q8_0}, "expected type_k of f32, f16 or bf16 to keep as q8_0, got q8_0; pass asl_full_kv=True"),
        (
            {"type_v": Q8_0, "flash_attn": True},
            "expected type_v of f32, f16 or bf16 to keep as q8_0, got q8_0; pass asl_full_kv=True",
        ),
    ],
)
def test_a_quantised_cache_is_kept_as_it_is_or_not_at_all(llm_full, types, message):
    with pytest.raises(OptionError, match=f"asl_full_kv: {message}"):
        llm_full(asl_full_kv="q8_0", **types)
    llm = llm_full(asl_full_kv=True, **types)
    llm.prefill(OTHER)
    assert llm.last_prefill.full_kv_bytes == kept_bytes(llm.last_prefill)


def test_rows_that_are_no_whole_blocks(tiny_model):
    path = str(tiny_model("llama", n_head=2, n_head_kv=1, head_dim=48, n_ff=64))
    options = {"n_ctx": 256, "n_threads": 1, "asl_budget": 0.4, "asl_full_kv": "q8_0", "verbose": False}
    with pytest.raises(
        OptionError, match="asl_full_kv: expected K and V .* whole blocks of 32 for q8_0, got 48 and 48"
    ):
        Llama(path, **options)
    with closing(Llama(path, **options | {"asl_full_kv": True})) as llm:
        assert llm(" ", max_tokens=1)


def test_a_damaged_file(llm_full, tmp_path):
    """Its rows are not one for each token; the digest says so before anything is read."""
    llm = llm_full(asl_full_kv="q8_0")
    llm.prefill(OTHER)
    llm.save_prompt(tmp_path / "prompt.npz")
    with np.load(tmp_path / "prompt.npz") as arrays:
        np.savez(tmp_path / "short.npz", **{**arrays, "full_1": arrays["full_1"][1:]})
    with pytest.raises(StateError, match="ValueError: a file without a digest at its end"):
        llm.load_prompt(tmp_path / "short.npz")
    llm.prefill(OTHER[:-32] + QUESTIONS[0])
    assert llm.last_prefill.reused_tokens == len(OTHER) - 32


def test_on_the_command_line(tiny_model, tmp_path, capsys):
    (tmp_path / "text").write_text("On day 3 the keeper wrote a line about the weather. " * 20)
    model, sizes = str(tiny_model("llama")), []
    for option in ("--full-kv", "--full-kv=q8_0"):
        arguments = ["run", "-m", model, "-f", str(tmp_path / "text"), "-n", "2", "-t", "1", "--json", option]
        assert main(arguments) == 0
        sizes.append(json.loads(capsys.readouterr().out)["report"]["full_kv_bytes"])
    exact, packed = sizes
    assert exact > packed > 0
    for command in ("run", "chat"):
        with pytest.raises(SystemExit) as raised:
            main([command, "-m", model, "--full-kv", "q9_9"])
        assert raised.value.code == 2 and "invalid choice: 'q9_9'" in capsys.readouterr().err
