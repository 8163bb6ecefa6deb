"""llama.cpp used the stock way, and the same model with a session, on plain contexts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import NativeError
from .bindings import llama_cpp
from .session import Session
from .vocabulary import detokenize, load_model, tokenize


@dataclass(frozen=True)
class ContextOptions:
    """What every context of a benchmark shares."""

    n_threads: int = 2
    n_ubatch: int = 512
    flash_attn: bool = False
    kv_type: int = 1
    n_gpu_layers: int = 0

    @property
    def type_v(self) -> int:
        """ggml type of V: a quantised one needs flash attention."""
        return self.kv_type if self.flash_attn or self.kv_type == 0 else 1

    def to_kwargs(self, n_ctx: int) -> dict[str, Any]:
        """The keyword arguments of llama_cpp.Llama that make such a context."""
        return {
            "n_ctx": n_ctx,
            "n_batch": self.n_ubatch,
            "n_ubatch": self.n_ubatch,
            "n_threads": self.n_threads,
            "n_threads_batch": self.n_threads,
            "flash_attn": self.flash_attn,
            "type_k": self.kv_type,
            "type_v": self.type_v,
            "n_gpu_layers": self.n_gpu_layers,
        }


class Model:
    """A loaded model that hands out contexts. Close it after them."""

    def __init__(self, path: str, options: ContextOptions) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self.path = path
        self.options = options
        self.handle = load_model(self.path, n_gpu_layers=options.n_gpu_layers)
        self.n_layer = llama_cpp.llama_model_n_layer(self.handle)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))

    def close(self) -> None:
        llama_cpp.llama_model_free(self.handle)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens parsed."""
        return tokenize(self.handle, text)

    def tokenize_plain(self, text: str) -> list[int]:
        """Token ids of a text that goes on after others: no BOS, no special tokens."""
        return tokenize(self.handle, text, special=False)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of these tokens."""
        return detokenize(self.handle, tokens)

    def params(self, n_ctx: int) -> llama_cpp.llama_context_params:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.options.n_ubatch
        params.n_threads = params.n_threads_batch = self.options.n_threads
        params.flash_attn_type = int(self.options.flash_attn)
        params.type_k = self.options.kv_type
        params.type_v = self.options.type_v
        return params

    @contextmanager
    def context(self, n_ctx: int) -> Iterator[Any]:
        """A stock context of n_ctx cells."""
        ctx = llama_cpp.llama_init_from_model(self.handle, self.params(n_ctx))
        if not ctx:
            raise NativeError(f"llama.cpp could not create a context of {n_ctx} cells")
        try:
            yield ctx
        finally:
            llama_cpp.llama_free(ctx)

    @contextmanager
    def session(self, ctx: Any, n_cells: int, n_ctx: int, dequant: str) -> Iterator[Session]:
        """A session on a context of n_cells."""
        session = Session(ctx, self.params(n_cells), n_ctx)
        session.set_dequant(dequant)
        try:
            yield session
        finally:
            session.close()


def stock_prefill(ctx: Any, tokens: Sequence[int], n_batch: int) -> None:
    """Decodes a prompt from position 0 as llama_cpp.Llama does: a GPU is waited for at the end alone."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
    for begin in range(0, len(tokens), n_batch):
        _submit(ctx, tokens[begin : begin + n_batch])
    llama_cpp.llama_synchronize(ctx)


def decode(ctx: Any, tokens: Sequence[int]) -> None:
    """One llama_decode call, until it is done; the last token's logits are computed."""
    _submit(ctx, tokens)
    llama_cpp.llama_synchronize(ctx)


def _submit(ctx: Any, tokens: Sequence[int]) -> None:
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    if status := llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(array, len(tokens))):
        raise NativeError(f"llama_decode returned {status}")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    wall: float
    cpu: float


def timed(call: Callable[[], Any]) -> tuple[Any, Timing]:
    """A call's result, and its wall-clock and CPU seconds (all threads of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)
