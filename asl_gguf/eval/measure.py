"""How good an answer is: what the model writes, and how likely it finds the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._native import llama_cpp
from ..bench.stock import Model, decode
from ..errors import NativeError
from ..types import Floats
from .tasks import Example, Task


@dataclass(frozen=True)
class Measures:
    """One answer."""

    score: float
    """the task's score of the completion, 0 to 1"""
    nll: float
    """mean negative log-likelihood of the reference text's tokens, in nats"""
    token_accuracy: float
    """share of the reference text's tokens that are the likeliest, given the ones before"""
    completion: str


def measure(model: Model, ctx: Any, n_prompt: int, task: Task, example: Example) -> Measures:
    """Measures an answer in a context that holds the prompt and the logits of its last token.

    Greedy decoding writes the reference text exactly if each of its tokens is the likeliest one; only otherwise is
    a completion generated.
    """
    reference = model.tokenize_plain(example.reference_text)
    first = logits(model, ctx, -1)
    rows = [first, *_forced(model, ctx, n_prompt, reference[:-1])]
    likeliest = [int(row.argmax()) for row in rows]
    hits = [token == best for token, best in zip(reference, likeliest, strict=True)]
    nll = [_nll(row, token) for row, token in zip(rows, reference, strict=True)]
    if all(hits):
        completion = example.reference_text
    else:
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(ctx), 0, n_prompt, -1)
        completion = _greedy(model, ctx, first, example.max_new_tokens)
    return Measures(
        score=task.evaluate(example, completion),
        nll=float(np.mean(nll)),
        token_accuracy=float(np.mean(hits)),
        completion=completion,
    )


def logits(model: Model, ctx: Any, row: int) -> Floats:
    """float32 [n_vocab], a copy."""
    values = llama_cpp.llama_get_logits_ith(ctx, row)
    if not values:
        raise NativeError(f"expected logits in row {row}, the context has none")
    return np.ctypeslib.as_array(values, shape=(model.n_vocab,)).copy()


def _forced(model: Model, ctx: Any, n_past: int, tokens: Sequence[int]) -> list[Floats]:
    """Logits after each of these tokens, decoded in one batch at positions from n_past on."""
    if not tokens:
        return []
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = n_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        if status := llama_cpp.llama_decode(ctx, batch):
            raise NativeError(f"llama_decode returned {status}")
        return [logits(model, ctx, i) for i in range(len(tokens))]
    finally:
        llama_cpp.llama_batch_free(batch)


def _greedy(model: Model, ctx: Any, row: Floats, n_tokens: int) -> str:
    vocab = llama_cpp.llama_model_get_vocab(model.handle)
    tokens: list[int] = []
    for _ in range(n_tokens):
        token = int(row.argmax())
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            break
        tokens.append(token)
        if len(tokens) < n_tokens:
            decode(ctx, [token])
            row = logits(model, ctx, -1)
    return model.detokenize(tokens)


def _nll(row: Floats, token: int) -> float:
    values = row.astype(np.float64)
    peak = values.max()
    return float(np.log(np.exp(values - peak).sum()) + peak - values[token])
