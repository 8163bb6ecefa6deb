"""How good an answer is: what the model writes, how likely it finds the right answer, how far it is from the full cache's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NativeError
from ..native.bindings import llama_cpp
from ..native.model import Model, decode
from ..policies.contract import Floats
from .tasks import Example, Task

MOST_REFERENCE_TOKENS = 128
"""tokens of a reference text that are looked at, at most"""
_TIMED_TOKENS = 4
"""decoded one by one for their time, where no completion has to be written"""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measures:
    """One answer."""

    score: float
    """the task's score of the completion, 0 to 1; of a text to go on with: token_accuracy"""
    nll: float
    """mean negative log-likelihood of the reference text's tokens, in nats; exp(nll) is the perplexity"""
    token_accuracy: float
    """share of the reference text's tokens that are the likeliest, given the ones before"""
    completion: str
    kl: float
    """Kullback-Leibler divergence in nats of the next-token distribution from the full cache's, mean over the
    reference text's tokens; 0 for the full cache itself"""
    top1_agreement: float
    """share of the reference text's tokens at which the likeliest token is the full cache's"""
    decode_tokens: int
    """tokens decoded one by one; 0: none was timed"""
    decode_seconds: float


def answer_logits(model: Model, ctx: Any, n_prompt: int, example: Example) -> list[Floats]:
    """Logits at each of the reference text's first tokens: float32 [n_vocab] each, given the prompt and those before.

    The context holds the prompt and the logits of its last token; the tokens' cells come behind it.
    """
    return [logits(model, ctx, -1), *_forced(model, ctx, n_prompt, _reference(model, example)[:-1])]


def measure(
    model: Model,
    ctx: Any,
    n_prompt: int,
    task: Task,
    example: Example,
    *,
    full: Sequence[Floats] | None = None,
    rows: Sequence[Floats] | None = None,
) -> Measures:
    """Measures an answer in a context that holds the prompt and the logits of its last token.

    Greedy decoding writes the reference text exactly if each of its tokens is the likeliest one; only otherwise is
    a completion generated.

    Args:
        full: answer_logits with the full cache; None: these are they.
        rows: answer_logits of this context, if they were computed already.
    """
    reference = _reference(model, example)
    rows = answer_logits(model, ctx, n_prompt, example) if rows is None else rows
    full = rows if full is None else full
    hits = [token == int(row.argmax()) for token, row in zip(reference, rows, strict=True)]
    agreed = [int(row.argmax()) == int(other.argmax()) for row, other in zip(rows, full, strict=True)]
    nll = [-float(log_softmax(row)[token]) for token, row in zip(reference, rows, strict=True)]
    completion, n_decoded, seconds = _completion(
        model, ctx, n_prompt, example, rows[0], reference if all(hits) else None
    )
    token_accuracy = float(np.mean(hits))
    return Measures(
        score=task.evaluate(example, completion) if task.generates else token_accuracy,
        nll=float(np.mean(nll)),
        token_accuracy=token_accuracy,
        completion=completion,
        kl=0.0 if full is rows else float(np.mean([divergence(*pair) for pair in zip(full, rows, strict=True)])),
        top1_agreement=float(np.mean(agreed)),
        decode_tokens=n_decoded,
        decode_seconds=round(seconds, 4),
    )


def logits(model: Model, ctx: Any, row: int) -> Floats:
    """float32 [n_vocab], a copy."""
    values = llama_cpp.llama_get_logits_ith(ctx, row)
    if not values:
        raise NativeError(f"expected logits in row {row}, the context has none")
    return np.ctypeslib.as_array(values, shape=(model.n_vocab,)).copy()


def log_softmax(row: Floats) -> Doubles:
    """Log-probabilities in nats, float64 [n_vocab]."""
    values = row.astype(np.float64)
    values -= values.max()
    return values - np.log(np.exp(values).sum())


def divergence(full: Floats, row: Floats) -> float:
    """Kullback-Leibler divergence of the distribution of these logits from that of `full`, in nats, not negative."""
    p, q = log_softmax(full), log_softmax(row)
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def _reference(model: Model, example: Example) -> list[int]:
    most = min(MOST_REFERENCE_TOKENS, model.options.n_ubatch)
    return model.tokenize_plain(example.reference_text)[:most]


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


def _completion(
    model: Model, ctx: Any, n_prompt: int, example: Example, first: Floats, known: Sequence[int] | None
) -> tuple[str, int, float]:
    """The completion, and how many tokens were decoded one by one in how many seconds.

    known: the reference's tokens, if greedy decoding would write them; then some are decoded for their time alone.
    """
    if not example.max_new_tokens:
        return (example.reference_text if known else ""), 0, 0.0
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(ctx), 0, n_prompt, -1)
    started = time.perf_counter()
    if known is None:
        tokens = _greedy(model, ctx, first, example.max_new_tokens)
        return model.detokenize(tokens), max(0, len(tokens) - 1), time.perf_counter() - started
    for token in known[:_TIMED_TOKENS]:
        decode(ctx, [token])
    return example.reference_text, min(len(known), _TIMED_TOKENS), time.perf_counter() - started


def _greedy(model: Model, ctx: Any, row: Floats, n_tokens: int) -> list[int]:
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
    return tokens
