"""How much of a prompt fits into a slice: the longest chunk that leaves the other slots their turn."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..engine.place import Place
from ..native.bindings import llama_cpp

_MEASURED = 64
"""tokens of a chunk that is measured"""
_LEAST = 64
"""tokens of a chunk: with fewer, llama.cpp's flash attention on CPUs takes one query at a time, three times as long"""
_LAYERS = 4


@dataclass(frozen=True)
class Pace:
    """Speed of this model on this machine, measured once: the same prompt runs in the same chunks, whatever else runs."""

    seconds_token: float
    """of one token in one layer, without its attention"""
    n_keys_doubling: float
    """keys whose attention takes a token as long as all weights of the layer do"""

    def chunk(self, n_tokens: int, seconds: float, most: int) -> int:
        """Tokens of a chunk of one layer, a power of two from 64 on, at most `most`.

        Args:
            n_tokens: of the whole prompt: its last chunk attends to as many keys.
            seconds: what a chunk may take.
        """
        a_token = self.seconds_token * (1 + n_tokens / self.n_keys_doubling)
        n_fitting, n_chunk = seconds / a_token, _LEAST
        while n_chunk * 2 <= min(n_fitting, most):
            n_chunk *= 2
        return min(n_chunk, most)

    def n_whole(self, seconds: float, n_layer: int) -> int:
        """Tokens that run through all layers in this time, at least 8."""
        return max(8, int(seconds / (self.seconds_token * n_layer)))


def measure(place: Place) -> Pace:
    """Runs a few layers over a few tokens, and forgets them.

    Raises:
        UnsupportedModelError, NativeError: no prompt can be prefilled there.
    """
    session = place.open(_MEASURED)
    try:
        n_layer = session.info().n_layer
        session.begin([0] * _MEASURED, 1)
        seconds = []
        for _ in range(min(_LAYERS, n_layer)):
            began, began_busy = time.perf_counter(), time.process_time()
            session.run(1, False)
            # on a loaded machine the clock runs on while others have the core; more threads take more CPU time than that
            seconds.append(min(time.perf_counter() - began, time.process_time() - began_busy))
        session.abort()
    finally:
        place.leave()
    # the first layer pays for buffers
    return Pace(max(min(seconds), 1e-7) / _MEASURED, _n_keys_doubling(llama_cpp.llama_get_model(place.ctx)))


def _n_keys_doubling(model: object) -> float:
    n_embd, n_layer = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_model_n_layer(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    n_weights = max(llama_cpp.llama_model_n_params(model) - n_vocab * n_embd, n_layer)
    # a key and a value of every head, each a multiplication and an addition, where a weight is one of either
    return n_weights / n_layer / (2 * n_embd)
