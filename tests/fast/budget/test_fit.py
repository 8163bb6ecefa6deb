"""`fit:SIZE`: the KV memory of a `Llama` stays within it at its peak, and nothing of it is left unused."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import pytest

from asl_gguf import Llama, ModelError, OptionError
from asl_gguf.budget.memory import KVMemory
from asl_gguf.budget.rule import BudgetContext
from asl_gguf.errors import ContextFullError, PruningDisabledWarning
from asl_gguf.policies import ASL, FastKV, GemFilter, PyramidInfer, SnapKV
from harness import F16, F32, Q8_0, prompt
from tiny_gguf import ARCHITECTURES, UNPRUNABLE
from tiny_kinds import KINDS, write_kind
from tiny_llama import SETTLES, greedy

N_CTX = 2048
ROOM = 61
"""and 3 for a character that is not finished: 64"""
CELL = 6 * 2 * 64 * 2
"""bytes of a cell of the tiny llama: layers, K and V, elements, F16"""
SLOT = N_CTX * CELL // 6
POLICY = SnapKV(window=8)
FLASH = {"flash_attn": True}
SHARED_LAYERS = "gemma4.attention.shared_kv_layers"


# what a cell takes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("type_k, type_v, flash", [(None, None, False), (F32, F16, False), (Q8_0, Q8_0, True)], ids=str)
def test_memory_is_what_was_predicted(make, architecture, type_k, type_v, flash):
    """The bytes are those that were measured, and the peak of a prompt of nearly n_ctx stays within a size that 256 cells
    more would exceed."""
    options: dict[str, Any] = {"type_k": type_k, "type_v": type_v, "flash_attn": flash}
    options |= {"architecture": architecture, "n_ctx": 512, "asl_room": ROOM, "asl_policy": POLICY}
    memory = KVMemory.of(make(**options).model_path, options)
    size = 512 * memory.bytes_slot + 400 * memory.bytes_cell
    llm = make(**options, asl_budget=f"fit:{size}B")
    report = llm.prefill(prompt(512 - 30))
    info = llm._asl_session.info()
    assert info.kv_bytes_cell == memory.bytes_cell
    assert report.kv_bytes == llm.n_cells * memory.bytes_cell == info.kv_bytes_decode
    assert report.kv_bytes_prefill_peak == 512 * memory.bytes_slot
    peak = report.kv_bytes + report.kv_bytes_prefill_peak
    assert peak <= size < peak + 256 * memory.bytes_cell


@pytest.mark.parametrize("sizes", [{"n_head_kv": 4}, {"head_dim": 64, "n_embd": 96}, {"n_layer": 3}], ids=str)
def test_bytes_of_other_shapes(make, tiny_model, sizes):
    path = str(tiny_model("llama", **sizes))
    with contextlib.closing(Llama(path, n_ctx=512, n_threads=1, asl_budget="fit:8MiB", asl_room=64)) as llm:
        assert llm._asl_session.info().kv_bytes_cell == KVMemory.of(path, {}).bytes_cell


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_measured(kind, tmp_path):
    """A header does not say which layers have K/V, and how wide they are."""
    path = str(write_kind(tmp_path / "model.gguf", kind))
    with contextlib.closing(Llama(path, n_ctx=256, n_threads=1, asl_budget=100, asl_policy=POLICY, asl_room=64)) as llm:
        peak = llm.prefill([1 + i % 100 for i in range(240)]).kv_bytes_prefill_peak
        cell = llm._asl_session.info().kv_bytes_cell
    memory = KVMemory.of(path, {})
    assert (memory.bytes_cell, memory.bytes_slot) == (cell, peak // 256)
    with contextlib.closing(Llama(path, n_ctx=256, n_threads=1, asl_budget=f"fit:{256 * (cell + peak)}B")) as llm:
        assert llm.n_cells == 256


def test_types_and_overrides(tiny_model, tmp_path, capfd):
    """F16 takes 2 bytes an element, q8_0 34 for 32. An override may change which layers have K/V."""
    path, n = str(tiny_model("llama")), CELL // 2
    plain, flash = (
        KVMemory.of(path, {"type_k": Q8_0}),
        KVMemory.of(path, dict.fromkeys(("type_k", "type_v"), Q8_0) | FLASH),
    )
    assert (plain.bytes_cell, flash.bytes_cell) == (n // 2 * 34 // 32 + n, n * 34 // 32)
    assert (plain.types, flash.types) == ("q8_0 and f16", "q8_0 and q8_0")
    assert KVMemory.of(path, {"kv_overrides": {"general.name": "x", "a": True, "b": 1.5}}).bytes_cell == CELL
    shared = str(write_kind(tmp_path / "shared.gguf", "shared-kv"))
    cells = [KVMemory.of(shared, {"kv_overrides": {SHARED_LAYERS: n}}).bytes_cell for n in (0, 2)]
    assert cells == [4 * 1024, 3 * 1024] and not capfd.readouterr().err


def test_files_that_cannot_be_measured(make, tmp_path):
    """Whoever loads the model says what is wrong."""
    assert not KVMemory.of(str(tmp_path / "missing.gguf"), {}).bytes_cell
    path = make().model_path
    assert not KVMemory.of(path, {"type_v": Q8_0}).bytes_cell  # needs flash attention
    with pytest.raises(OptionError, match="type_v: expected flash_attn=True"):
        make(asl_budget="fit:4MiB", type_v=Q8_0)
    assert not KVMemory.of(make(architecture=UNPRUNABLE[0]).model_path, {}).bytes_cell
    with pytest.raises(ModelError, match="check the file and kv_overrides"):
        make(asl_budget="fit:4MiB", kv_overrides={"llama.attention.key_length": 64})


# what is chosen


def fitting(make: Any, n_cells: int, extra: int = 0, **options: Any) -> Any:
    """A model whose SIZE is that of n_cells cells."""
    options = {"n_ctx": N_CTX, "asl_room": ROOM, "asl_policy": POLICY, **options}
    return make(asl_budget=f"fit:{n_cells * CELL + SLOT + extra}B", **options)


def test_the_most_tokens_that_fit(make):
    for extra, n_cells in ((0, 512), (256 * CELL - 1, 512), (256 * CELL, 768), (-1, 256)):
        llm = fitting(make, 512, extra)
        report = llm.prefill(prompt(1000))
        assert llm.n_cells == n_cells and report.kept_tokens == report.budget_tokens == n_cells - 64
    llm = fitting(make, 512)
    assert llm.prefill(prompt(448)).pruned is False
    report = llm.prefill(prompt(448 + 1))
    assert report.pruned and report.kept_tokens == 448
    assert report.budget_choice == (
        f"fit:{512 * CELL + SLOT}B: 512 cells of 1,536 bytes (0.8 MiB) beside 0.5 MiB for the prefill, "
        "64 of them for the answer and later turns"
    )


def test_a_prompt_near_n_ctx_needs_less_room(make):
    """Positions end at n_ctx: what the answer cannot use holds tokens of the prompt."""
    report = fitting(make, 512).prefill(prompt(N_CTX - 10))
    assert report.kept_tokens == 512 - 10 and "10 of them for the answer" in report.budget_choice


@pytest.mark.parametrize(
    "policy",
    [FastKV(window=8, tsp_layer=2, cache_k=120), FastKV(window=8, tsp_layer=2), GemFilter(), SETTLES, ASL(window=8)],
    ids=lambda policy: f"{policy.name}-{getattr(policy, 'cache_k', '')}",
)
def test_policies_stay_within_the_size(make, policy):
    llm = fitting(make, 512, asl_policy=policy)
    report = llm.prefill(prompt(640))
    greedy(llm, prompt(640), ROOM)
    assert report.kv_bytes + report.kv_bytes_prefill_peak <= 512 * CELL + SLOT
    n_kept = report.budget_tokens
    assert policy.max_rows(640, n_kept) + 64 <= llm.n_cells == 512
    assert n_kept == 639 or policy.max_rows(640, n_kept + 1) + 64 > 512


@dataclasses.dataclass(frozen=True)
class TwiceTheRows(SnapKV):
    """As a policy of somebody's own, whose layers keep twice the rows and 3 more."""

    def max_rows(self, n_tokens: int, n_kept: int) -> int:
        return min(n_tokens, 2 * n_kept + 3)


def test_the_largest_budget_whose_rows_fit():
    use = BudgetContext("", N_CTX, TwiceTheRows(window=8), ROOM)
    for n_tokens, n_cells in ((640, 512), (449, 512), (448, 512), (2040, 768)):
        n_free = n_cells - min(64, N_CTX - n_tokens)
        n_kept = use.most_kept(n_tokens, n_cells)
        assert n_kept == (n_tokens if n_tokens <= n_free else (n_free - 3) // 2)
    assert use.smallest_cells == 256 and BudgetContext("", N_CTX, TwiceTheRows(window=100), ROOM).smallest_cells == 512


@pytest.mark.parametrize("policy", ["none", PyramidInfer(), FastKV(cache_k="all")], ids=lambda policy: str(policy)[:8])
def test_policies_that_need_a_cell_for_each_token(make, policy):
    """They get the full cache, or an error that says its size."""
    with pytest.raises(OptionError, match=r"expected at least fit:3\.5MiB for n_ctx = 2048, .*, got fit:1048576B"):
        make(n_ctx=N_CTX, asl_budget="fit:1048576B", asl_policy=policy)
    report = make(n_ctx=N_CTX, asl_budget="fit:3.5MiB", asl_policy=policy).prefill(prompt(640))
    assert not report.pruned and report.budget_choice.endswith("all of n_ctx = 2,048, nothing is ever pruned")


def test_a_size_for_all_of_n_ctx(make, stock):
    llm = make(n_ctx=N_CTX, asl_budget="fit:1GiB", asl_dequant=False)
    assert llm.n_cells == N_CTX and greedy(llm, prompt(640)) == greedy(stock(n_ctx=N_CTX), prompt(640))
    report = llm.last_prefill
    assert not report.pruned and "nothing is ever pruned" in report.budget_choice
    assert greedy(llm, prompt(N_CTX - 1), 1)


def test_a_size_that_is_too_small(make, tiny_model):
    """The error says the smallest that would do, and it does."""
    options = {"n_ctx": N_CTX, "asl_room": 700, "type_k": F32}
    with pytest.raises(OptionError) as caught:
        make(asl_budget="fit:100KiB", **options)
    found = re.fullmatch(
        r"asl_budget: expected at least (fit:[0-9.]+MiB) for n_ctx = 2048, asl_room = 700, policy asl-span and K/V of "
        r"f32 and f16, got fit:100KiB; raise it, or lower n_ctx or asl_room, or pass a smaller type_k or type_v",
        str(caught.value),
    )
    llm = make(asl_budget=found[1], **options)
    assert llm.n_cells == 768 and llm.prefill(prompt(1000)).kept_tokens == 65
    smaller = f"fit:{float(found[1][4:-3]) - 0.1:.1f}MiB"
    with pytest.raises(OptionError, match=f"expected at least {found[1]} .*, got {smaller};"):
        make(asl_budget=smaller, **options)


def test_cells_of_the_users_own(make):
    llm = fitting(make, 1024, asl_decode_ctx=512)
    assert llm.n_cells == 512 and llm.prefill(prompt(640)).kept_tokens == 448
    with pytest.raises(
        OptionError, match=r"asl_decode_ctx: expected at most 512 cells, .* holds, got 513; leave it out"
    ):
        fitting(make, 512, asl_decode_ctx=513)
    for budget in ("fit:8MiB", "ttft:5s"):
        with pytest.raises(
            OptionError, match="asl_decode_ctx: expected at least 768 cells for asl_room = 600 .*got 512"
        ):
            make(n_ctx=N_CTX, asl_budget=budget, asl_decode_ctx=512, asl_room=600)


def test_an_answer_longer_than_the_room(make):
    llm = fitting(make, 512)
    with pytest.raises(ContextFullError, match="pass asl_room=100 or more .*, raise asl_budget or lower max_tokens"):
        llm.create_completion(prompt(640), max_tokens=100)


def test_turns_go_on_until_the_cells_are_full(make):
    llm, text, again = fitting(make, 512), prompt(640), []
    for seed in range(1, 9):
        text = [*text, *greedy(llm, text, 8), *prompt(12, seed)]
        report = llm.last_prefill
        if not report.reused_tokens:
            again.append(seed)
            assert report.kept_tokens == 448 and "for the answer" in report.budget_choice
            assert seed == 1 or "left no room for this turn" in report.reason
    assert again == [1, 5]  # 20 of 64 cells a turn


def test_unpruned_turns(make):
    """What fits is kept whole, turn after turn; the one that does not is pruned with all before it."""
    llm, text = fitting(make, 512), prompt(300)
    greedy(llm, text, 1)
    for seed, expected in ((1, (300, 400)), (2, (0, 448))):
        text = [*text, *prompt(100, seed)]
        greedy(llm, text, 1)
        report = llm.last_prefill
        assert (report.reused_tokens, report.kept_tokens) == expected
        assert (report.budget_choice is None) == bool(report.reused_tokens)


def test_the_guard_takes_the_cells_there_are(make):
    llm = fitting(make, 512, asl_guard=1.0)
    assert llm.n_cells == 512
    report = llm.prefill(prompt(640))
    assert report.guard_attempts[0][0] == 448 and report.kept_tokens == 511
    assert report.kv_bytes + report.kv_bytes_prefill_peak <= 512 * CELL + SLOT


def test_protected_tokens_count_towards_the_size(make):
    llm = fitting(make, 512, asl_protect=(100, 400))
    report = llm.prefill(prompt(640))
    assert report.protected_tokens == 300 and report.kept_tokens == 448
    with pytest.raises(OptionError, match="n_kept: expected at least 608 tokens .* 600 protected tokens.*, got 448"):
        fitting(make, 512, asl_protect=(20, 620)).prefill(prompt(640))


@pytest.mark.parametrize("size, kept", [("fit:1MiB", False), ("fit:1GiB", True)])
@pytest.mark.parametrize("use", [*UNPRUNABLE, "logits_all"])
def test_models_that_cannot_be_pruned(make, size, kept, use):
    """The warning, and the reason of the report, say if the full cache exceeds the size."""
    options = {"logits_all": True} if use == "logits_all" else {"architecture": use}
    with pytest.warns(PruningDisabledWarning) as caught:
        llm = make(n_ctx=N_CTX, asl_budget=size, asl_policy=POLICY, asl_room=ROOM, **options)
    greedy(llm, prompt(300), 1)
    text, report = str(caught[0].message), llm.last_prefill
    assert report.reason in text and report.budget_choice is None and not report.pruned
    exceeded = report.kv_bytes > 2**20 and not kept
    assert exceeded == (f"; {size} is not kept: the full cache takes {report.kv_bytes / 2**20:,.1f} MiB" in text)
    assert exceeded or "is not kept" not in text
    if use == "logits_all":
        assert exceeded == (not kept)


def test_vocabulary_alone(make):
    with pytest.warns(PruningDisabledWarning):
        assert make(vocab_only=True, asl_budget="fit:1MiB").tokenize(b"hello")
