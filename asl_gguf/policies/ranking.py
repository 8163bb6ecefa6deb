"""NumPy twins of the native operations, and the arithmetic that every policy shares.

Sources: arXiv 2601.07667 (ASL), 2404.14469 (SnapKV). Symbols: n current tokens, w window,
H query heads, H_kv KV heads.
"""

from __future__ import annotations

import numpy as np

from ..errors import OptionError
from .contract import Floats, Indices, LayerScores


def window_scores(
    queries: Floats,
    keys: Floats,
    scale: float,
    weights: Floats | None = None,
    sinks: Floats | None = None,
    slopes: Floats | None = None,
) -> Floats:
    """Twin of `asl_session_get_scores`.

    Args:
        queries: float32 [w, H, n_embd_head_k], of the last w tokens, after RoPE.
        keys: float32 [n, H_kv, n_embd_head_k], after RoPE.
        scale: factor on the products (`kq_scale` in llama.cpp).
        weights: float32 [w], factors on each query's attention; None: 1.
        sinks: float32 [H], a logit of each head that takes attention and belongs to no key; None: without.
        slopes: float32 [H], what each head takes from a logit for each token between query and key (ALiBi); None: nothing.

    Returns:
        float32 [H_kv, n]: softmax over all keys (and the sink) with the causal mask inside the window, summed
        over the window's queries and over the H / H_kv query heads of each KV head.
    """
    n_window, n_head, _ = queries.shape
    n_tokens, n_head_kv, _ = keys.shape
    group = n_head // n_head_kv
    begin = n_tokens - n_window
    masked = np.triu(np.ones((n_window, n_window), dtype=bool), 1)  # no query sees keys after its own
    factors = np.ones((n_window, 1)) if weights is None else weights.astype(np.float64)[:, None]
    result = np.empty((n_head_kv, n_tokens), dtype=np.float32)
    for head_kv in range(n_head_kv):
        own = queries[:, head_kv * group : (head_kv + 1) * group].astype(np.float64)  # [w, group, d]
        # a product of matrices: einsum takes three times as long, and others wait meanwhile
        logits = own.transpose(1, 0, 2) @ keys[:, head_kv].astype(np.float64).T * scale  # [group, w, n]
        if slopes is not None:
            distances = np.arange(begin, n_tokens)[:, None] - np.arange(n_tokens)
            logits -= slopes[head_kv * group : (head_kv + 1) * group, None, None] * distances
        logits[:, :, begin:][:, masked] = -np.inf
        sink = np.full(group, -np.inf) if sinks is None else sinks[head_kv * group : (head_kv + 1) * group]
        largest = np.maximum(logits.max(axis=-1, keepdims=True), sink[:, None, None])
        attention = np.exp(logits - largest)
        attention /= attention.sum(axis=-1, keepdims=True) + np.exp(sink[:, None, None] - largest)
        result[head_kv] = (attention * factors).sum(axis=(0, 1))
    return result


def gather_rows(rows: np.ndarray, index: Indices) -> np.ndarray:
    """Twin of `asl_session_keep_rows`.

    Args:
        rows: [n, H_kv, d], K or V of one layer.
        index: int32 [k], or [H_kv, k] with a list for each KV head.

    Returns:
        [k, H_kv, d]
    """
    n_head_kv = rows.shape[1]
    per_head = np.broadcast_to(index, (n_head_kv, index.shape[-1]))
    return np.stack([rows[per_head[head], head] for head in range(n_head_kv)], axis=1)


def average_pool(values: Floats, kernel_size: int) -> Floats:
    """Moving average along the last axis; the divisor is kernel_size at the edges too, as in the papers' code.

    Args:
        values: [..., n]
        kernel_size: odd number of tokens.
    """
    half = kernel_size // 2
    n = values.shape[-1]
    wide = padded(values.astype(np.float64), half, half, 0.0)
    total = wide[..., :n].copy()
    for shift in range(1, kernel_size):  # many times as fast as a sum over windows, in the same order
        total += wide[..., shift : shift + n]
    return (total / kernel_size).astype(np.float32)


def padded(values: Floats, before: int, after: int, fill: float) -> Floats:
    """More values at both ends of the last axis. np.pad takes longer than all that is done with them here."""
    n = values.shape[-1]
    result = np.full((*values.shape[:-1], before + n + after), fill, dtype=values.dtype)
    result[..., before : before + n] = values
    return result


def span_maximum(values: Floats, back: int, forward: int, back_share: float = 1.0) -> Floats:
    """Each value becomes the largest of itself, the `forward` values before it and a share of the `back` ones after it.

    So a large value reaches `forward` places forward and, weakened, `back` places back.

    Args:
        values: [..., n], not negative.
        back_share: factor on the values after it, in [0, 1].
    """
    ahead = _largest_of(values, forward, 0)
    if back == 0 or back_share == 0:
        return ahead
    return np.maximum(ahead, _largest_of(values, 0, back) * np.float32(back_share))


def _largest_of(values: Floats, before: int, after: int) -> Floats:
    """The largest of each value, the `before` ones before it and the `after` ones after it."""
    width = before + after + 1
    result = padded(values, before, after, -np.inf)
    size = 1  # of the windows whose maxima these are
    while size < width:
        step = min(size, width - size)
        result = np.maximum(result[..., :-step], result[..., step:])
        size += step
    return result


def last_query_products(queries: Floats, keys: Floats) -> Floats:
    """Inner products of the last query with every key, summed over heads (GemFilter, arXiv 2409.17422, algorithm 1).

    Args:
        queries: float32 [w, H, d] and keys: float32 [n, H_kv, d], after RoPE.

    Returns:
        float32 [n]
    """
    n_head_kv = keys.shape[1]
    per_group = queries[-1].reshape(n_head_kv, -1, queries.shape[-1]).sum(axis=1, dtype=np.float64)
    return np.einsum("hd,nhd->n", per_group, keys.astype(np.float64)).astype(np.float32)


def order_by_score(scores: Floats) -> Indices:
    """Indices from the largest score to the smallest along the last axis; ties in order of position."""
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int32)


def best(scores: Floats, n_kept: int) -> Indices:
    """Indices of the n_kept largest scores along the last axis, in order of position; of equal ones the earlier.

    The first n_kept of `order_by_score`, sorted, without sorting all of them.
    """
    if n_kept == 0:
        return np.empty((*scores.shape[:-1], 0), dtype=np.int32)
    falling = -scores
    limit = np.partition(falling, n_kept - 1, axis=-1)[..., n_kept - 1 : n_kept]
    if np.isnan(limit).any():  # ranked last, and the rest does not suffice
        return np.sort(order_by_score(scores)[..., :n_kept], axis=-1)
    chosen, ties = falling < limit, falling == limit
    missing = n_kept - np.count_nonzero(chosen, axis=-1, keepdims=True)
    chosen |= ties & (np.cumsum(ties, axis=-1, dtype=np.int32) <= missing)
    return np.nonzero(chosen)[-1].reshape(*scores.shape[:-1], n_kept).astype(np.int32)


def ranks(scores: Floats) -> Indices:
    """Rank of each token along the last axis; 1 is the largest score."""
    order = order_by_score(scores)
    result = np.empty_like(order)
    np.put_along_axis(result, order, np.arange(1, order.shape[-1] + 1, dtype=np.int32), axis=-1)
    return result


def rank_variance(rank_rows: list[Indices], top: int) -> float:
    """Rank variance of ASL (section 3.2): how much the ranks of the leading tokens vary between layers.

    Args:
        rank_rows: rank vectors int32 [m] of the observed layers.
        top: leading tokens of each layer that enter the union.

    Returns:
        Mean over layers and union of (rank - the token's mean rank)^2.
    """
    stack = np.stack(rank_rows)
    union = (stack <= top).any(axis=0)
    chosen = stack[:, union].astype(np.float64)
    return float(np.mean((chosen - chosen.mean(axis=0)) ** 2))


def random_rank_variance(n: int) -> float:
    """Variance of a rank of n that may be any: (n^2 - 1) / 12. What the rank variance of tokens in no order comes near to."""
    return (n * n - 1) / 12


def keep_best(scores: Floats, fixed: Indices, n_kept: int) -> Indices:
    """The n_kept tokens with the best scores, the fixed ones among them, in order of position.

    Args:
        scores: [..., n]; ties go to the earlier token.
        fixed: indices of tokens to keep whatever their scores.

    Returns:
        int32 [..., n_kept]

    Raises:
        OptionError: there are more fixed tokens than n_kept.
    """
    if fixed.size > n_kept:
        raise OptionError(
            f"n_kept: expected at least {fixed.size} tokens (sinks, window, protected ones), got {n_kept}"
        )
    ranked = scores.astype(np.float32, copy=True)
    ranked[..., fixed] = np.inf
    return best(ranked, n_kept)


def fixed_tokens(scores: LayerScores, n_sink: int, window: int) -> Indices:
    """Indices of the first n_sink tokens, the last `window` ones and the protected ones."""
    n = scores.n_current
    ends = np.concatenate([np.arange(min(n_sink, n)), np.arange(max(0, n - window), n)])
    return np.union1d(ends, scores.protected).astype(np.int32)
