"""Answers of known bytes, whatever the model."""

from __future__ import annotations

import numpy as np

from harness import llama_cpp, prompt
from tiny_gguf import FIRST_BYTE

SPELLED_AFTER = prompt(100)


def spelling(text: bytes) -> llama_cpp.LogitsProcessorList:
    """Makes a model write these bytes, a token each, after a prompt of SPELLED_AFTER."""

    def force(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:] = -100.0
        scores[FIRST_BYTE + text[min(len(ids) - len(SPELLED_AFTER), len(text) - 1)]] = 100.0
        return scores

    return llama_cpp.LogitsProcessorList([force])
