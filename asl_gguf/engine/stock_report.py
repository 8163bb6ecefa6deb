"""The report of a prompt that llama_cpp evaluates, beside a prefill's own."""

from __future__ import annotations

from typing import Any

from ..budget.share import round_cells
from ..native.bindings import lib, llama_cpp, session_info
from ..report import PrefillReport


def stock_report(
    ctx: Any,
    *,
    n_tokens: int,
    n_reused: int,
    n_kept: int,
    n_ctx: int,
    info: session_info | None,
    policy: str,
    budget: int,
    reason: str | None,
) -> PrefillReport:
    """The report of a prompt that the parent evaluates, whole or from where the cached state ends.

    Args:
        n_kept: tokens whose K/V it ends up with.
        info: of the session; None without one.
    """
    kv_bytes = lib.context_kv_bytes(ctx)
    bytes_cell = info.kv_bytes_cell if info else kv_bytes / llama_cpp.llama_n_ctx(ctx)
    return PrefillReport(
        prompt_tokens=n_tokens,
        kept_tokens=n_kept,
        policy=policy,
        budget_tokens=budget,
        reason=reason,
        n_layer=llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx)),
        reused_tokens=n_reused,
        kv_bytes=kv_bytes,
        kv_bytes_resident=kv_bytes,
        kv_bytes_full=round_cells(n_ctx) * info.kv_bytes_cell if info else kv_bytes,
        state_bytes=int(lib.context_state_bytes(ctx)),
        kv_bytes_prompt=round(n_kept * bytes_cell),
        kv_bytes_prompt_full=round(n_tokens * bytes_cell),
    )
