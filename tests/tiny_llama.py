"""`Llama` on tiny models: the texts, prompts and questions that tests share, and how they look at an object.

The objects come from the fixtures `make` and `stock` of tests/fast/conftest.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from asl_gguf.policies import SpanASL
from harness import KVState, llama_cpp, prompt
from tiny_gguf import EOS, FIRST_BYTE, IM_START

N_CTX = 1024
N_LAYER, N_HEAD_KV = 6, 2
TEXT = "".join(
    f"On day {day} the keeper wrote {day * 37 % 101} lines about the weather in the log. " for day in range(9)
)
READABLE = dict.fromkeys((EOS, *range(FIRST_BYTE, FIRST_BYTE + 32), *range(FIRST_BYTE + 127, IM_START + 2)), -100.0)
"""logit bias: printable ASCII alone, which stays the same text however it is cut"""
SETTLES = SpanASL(min_layer=3, obs_layers=2, tau=2)
"""selects layer 3, even on random weights: the first ratio is 1"""
Make = Callable[..., Any]
DOCUMENT = prompt(150)
QUESTIONS = [prompt(40, seed=seed) for seed in range(3)]
EXCLAIM = {FIRST_BYTE + ord("!"): 100.0}
"""logit bias: an answer of exclamation marks, whose text has the tokens it was made of"""
SETTLES_WRITTEN = "asl-span:min_layer=2:obs_layers=3:tau=2:variance_reference=first"
"""its like as users write it: selects a layer even on random weights"""


def greedy(llm: Any, tokens: list[int], n_tokens: int = 8) -> list[int]:
    """The likeliest tokens after a prompt."""
    return list(islice(llm.generate(tokens, temp=0.0), n_tokens))


def logits(llm: Any) -> np.ndarray:
    """float32 [n_vocab]: of the last token that was evaluated."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()


def cells(llm: Any) -> KVState:
    """What the decode context holds."""
    size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
    buffer = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(llm.ctx, buffer, size, 0)
    return KVState.parse(bytes(buffer), N_HEAD_KV)


def complete(llm: Any, tokens: list[int], n_tokens: int = 8, **kwargs: Any) -> dict[str, Any]:
    return llm.create_completion(
        tokens, **{"max_tokens": n_tokens, "temperature": 0.0, "logit_bias": READABLE, **kwargs}
    )


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def n_kept(n_tokens: int) -> int:
    """Tokens that the budget keeps of a prompt that is pruned."""
    return n_tokens * 2 // 5


def forget(llm: Any) -> Any:
    """Makes an object as good as new: cells are empty, and no K/V on the host round those of the next prompt."""
    llm.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    llm.set_cache(None)
    llm.set_progress(None)
    if llm._sequence and llm._sequence.host:
        llm._sequence.host.clear()
    return llm
