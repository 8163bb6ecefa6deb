"""`fit:SIZE`: as many tokens as KV memory of a given size holds, while a prompt runs and afterwards."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError, OptionError
from ..native import devices, measured
from ..native.bindings import lib, llama_cpp, session_info
from ..policies import LateBudget
from ..report import PrefillReport
from .late import Shape, fixed_budget
from .rule import BudgetContext, BudgetRule
from .share import Budget, round_cells
from .targets import Auto, Target

_STEP = round_cells(1)


@dataclass(frozen=True)
class KVMemory:
    """Bytes of the KV buffers of a model's contexts."""

    bytes_cell: int
    """of a cell, over all layers; 0: there are none that could be pruned"""
    bytes_slot: int
    """of a cell of the prefill context, which has one layer at a time"""
    types: str
    """of K and V"""

    @classmethod
    def of(cls, path: str, kwargs: Mapping[str, Any]) -> KVMemory:
        """As llama.cpp allocates them for these keyword arguments of llama_cpp.Llama."""
        ggml = llama_cpp.llama_cpp._lib  # libllama, through which its libggml-base is found
        ggml.ggml_type_name.restype, ggml.ggml_type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
        types = [kwargs.get(name) for name in ("type_k", "type_v")]
        type_k, type_v = (llama_cpp.GGML_TYPE_F16 if kind is None else kind for kind in types)
        names = " and ".join(ggml.ggml_type_name(kind).decode() for kind in (type_k, type_v))
        bytes_cell, bytes_slot = measured.kv_bytes(path, kwargs) or (0, 0)
        return cls(bytes_cell, bytes_slot * _n_devices(kwargs), names)


def _n_devices(kwargs: Mapping[str, Any]) -> int:
    """How many devices hold K/V, at most. The prefill has a slot on each."""
    offloaded = kwargs.get("n_gpu_layers", 0) != 0 and kwargs.get("offload_kqv", True)
    if not offloaded or not llama_cpp.llama_supports_gpu_offload():
        return 1
    return devices.count()


@dataclass(frozen=True)
class MemoryRule(BudgetRule):
    """The most tokens that the cells of a given size hold beside the room; prompts that fit are kept whole."""

    target: Target
    context: BudgetContext
    memory: KVMemory

    @classmethod
    def make(cls, target: Target, context: BudgetContext) -> MemoryRule:
        """The rule for a model, whose K/V widths llama.cpp says.

        Raises:
            OptionError: the size holds too few cells for the policy and the room, or fewer than asl_decode_ctx.
        """
        rule = cls(target, context, KVMemory.of(context.path, context.kwargs))
        if rule.memory.bytes_cell:
            rule._check()
        return rule

    @property
    def slot_bytes(self) -> int:
        """Bytes of the prefill KV buffers at n_ctx tokens."""
        return round_cells(self.context.n_ctx) * self.memory.bytes_slot

    @property
    def _affordable(self) -> int:
        if not self.memory.bytes_cell:  # all of n_ctx follows, with the reason
            return _STEP
        return max(0, int(self.target.amount) - self.slot_bytes) // self.memory.bytes_cell // _STEP * _STEP

    @property
    def n_cells(self) -> int:
        if self.context.decode_ctx is not None:
            return round_cells(self.context.decode_ctx)
        return min(self._affordable, round_cells(self.context.n_ctx))

    def _check(self) -> None:
        context, smallest = self.context, self.context.smallest_cells
        if self._affordable < smallest:
            raise OptionError(
                f"asl_budget: expected at least fit:{_at_least(smallest * self.memory.bytes_cell + self.slot_bytes)} for "
                f"n_ctx = {context.n_ctx}, asl_room = {context.room}, policy {context.policy.name} and K/V of {self.memory.types}, got "
                f"{self.target.value}; raise it, or lower n_ctx or asl_room, or pass a smaller type_k or type_v"
            )
        check_decode_ctx(context)
        if context.decode_ctx is not None and self.n_cells > self._affordable:
            raise OptionError(
                f"asl_decode_ctx: expected at most {self._affordable} cells, which asl_budget={self.target.value} holds, "
                f"got {context.decode_ctx}; leave it out, or raise asl_budget"
            )

    def bind(self, info: session_info) -> None:
        if info.kv_bytes_cell != self.memory.bytes_cell:
            raise ModelError(
                f"expected KV cells of {self.memory.bytes_cell} bytes in {self.context.path}, as it was measured, got "
                f"{info.kv_bytes_cell}; give asl_budget as a share or a number of tokens"
            )

    def kept(self, n_tokens: int) -> int:
        return self.context.most_kept(n_tokens, self.n_cells)

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> LateBudget | None:
        return fixed_budget(self.context.policy, n_tokens, n_kept, shape)

    def annotate(self, report: PrefillReport) -> PrefillReport:
        return replace(report, budget_choice=self._choice(report.prompt_tokens))

    def _choice(self, n_tokens: int) -> str:
        context, n_bytes = self.context, self.n_cells * self.memory.bytes_cell
        text = (
            f"{self.target.value}: {self.n_cells:,} cells of {self.memory.bytes_cell:,} bytes ({_mib(n_bytes)}) beside "
            f"{_mib(self.slot_bytes)} for the prefill"
        )
        if self.n_cells >= context.n_ctx:
            return f"{text}: all of n_ctx = {context.n_ctx:,}, nothing is ever pruned"
        return f"{text}, {context.room_after(n_tokens):,} of them for the answer and later turns"

    def remedy(self, n_cells: int, n_answer: int) -> str:
        return f"pass asl_room={n_answer} or more (fewer tokens are kept then), raise asl_budget or lower max_tokens"


def check_decode_ctx(context: BudgetContext) -> None:
    """Raises OptionError if the cells that the user gave leave no tokens to choose from."""
    if context.decode_ctx is not None and round_cells(context.decode_ctx) < context.smallest_cells:
        raise OptionError(
            f"asl_decode_ctx: expected at least {context.smallest_cells} cells for asl_room = {context.room} and policy "
            f"{context.policy.name}, got {context.decode_ctx}; raise it or lower asl_room"
        )


def full_cache_note(budget: Budget | Auto | Target | None, context: Any) -> str:
    """What a full cache in place of a pruned one means for a size; empty if nothing.

    Args:
        context: its `llama_context *`.
    """
    if not isinstance(budget, Target) or budget.kind != "fit":
        return ""
    n_bytes = lib.context_kv_bytes(context)
    return f"; {budget.value} is not kept: the full cache takes {_mib(n_bytes)}" if n_bytes > budget.amount else ""


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


def _at_least(n_bytes: int) -> str:
    """A size to write after `fit:` that is no smaller."""
    return f"{math.ceil(n_bytes / 2**20 * 10) / 10:.1f}MiB"
