"""Reports beside a prefill's own: of prompts that llama_cpp evaluates, and of answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ._native import lib, llama_cpp
from .budget import round_cells
from .errors import ContextFullError, StateError
from .types import DecodeReport, PrefillReport

Tokens = Generator[int, Sequence[int] | None, None]


def stock_report(
    ctx: Any,
    n_tokens: int,
    n_reused: int,
    n_kept: int,
    n_ctx: int,
    info: Any | None,
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
        kv_bytes_prompt=n_kept * info.kv_bytes_cell if info else 0,
        kv_bytes_prompt_full=n_tokens * info.kv_bytes_cell if info else 0,
    )


def timed(tokens: Tokens, started: Callable[[float], None], sampled: Callable[[int, DecodeReport], None]) -> Tokens:
    """The same tokens.

    Args:
        started: called with the seconds to the first one.
        sampled: called with each token before it is given out, and the answer's report up to it.
    """
    begin = time.perf_counter()
    try:
        token = next(tokens)
    except StopIteration:
        return
    first = time.perf_counter()
    started(first - begin)
    n_decoded = 0
    while True:
        sampled(token, DecodeReport(n_decoded, time.perf_counter() - first))
        sent = yield token
        try:
            token = tokens.send(sent)
        except StopIteration:
            return
        n_decoded += 1


def until_full(tokens: Tokens, n_wanted: int) -> Tokens:
    """The same tokens, up to where the cells end, if that is after n_wanted: as stock's answers end at n_ctx.

    Args:
        n_wanted: max_tokens of the answer, which llama_cpp exceeds to finish a character; 0 without one.
    """
    n_tokens, sent = 0, None
    with contextlib.closing(tokens):
        while True:
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            except ContextFullError:
                if n_tokens < n_wanted:
                    raise
                return
            n_tokens += 1
            sent = yield token


def undisturbed(tokens: Tokens, turn: Callable[[], int]) -> Tokens:
    """The same tokens, as long as nothing else is asked in between.

    Args:
        turn: another number after every prompt and reset.

    Raises:
        StateError: the next token would go on from another prompt.
    """
    sent, began = None, None
    with contextlib.closing(tokens):
        while True:
            if began is not None and turn() != began:
                raise StateError(
                    "expected each answer to be read to its end, or to be given up, before the next prompt; got a prompt, a reset "
                    "or a state since the last token of this one. Ask again"
                )
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            began = turn()
            sent = yield token
