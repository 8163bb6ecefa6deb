"""How native results are compared with their NumPy twins."""

from __future__ import annotations

import math

import gguf
import numpy as np

from asl_gguf.policies import ranking
from harness import KVState


def random_index(rng: np.random.Generator, n_tokens: int, n_kept: int, n_lists: int | None) -> np.ndarray:
    """Increasing token indices with the last token among them: int32 [n_kept] or [n_lists, n_kept]."""
    others = [np.sort(rng.choice(n_tokens - 1, n_kept - 1, replace=False)) for _ in range(n_lists or 1)]
    lists = np.array([np.append(chosen, n_tokens - 1) for chosen in others], dtype=np.int32)
    return lists if n_lists else lists[0]


def assert_rows(actual: KVState, full: KVState, indices: list[np.ndarray]) -> None:
    """Layer by layer: the cells hold the rows of a full cache that the twin gathers."""
    for layer, index in enumerate(indices):
        for name in ("keys", "values"):
            got, expected = getattr(actual, name)[layer], ranking.gather_rows(getattr(full, name)[layer], index)
            wrong = np.argwhere((got != expected).any(axis=-1)).tolist()
            assert not wrong, f"{name} of layer {layer} differ in {len(wrong)} (cell, head), first {wrong[:3]}"


HEAD_DIM = 32
TOLERANCE = 1e-5


def kq_scale(architecture: str) -> float:
    """phi3 scales its queries before RoPE, and its products not at all."""
    return 1.0 if architecture == "phi3" else 1 / math.sqrt(HEAD_DIM)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error, relative to each score; scores below a millionth of their head's largest count as that."""
    floor = 1e-6 * expected.max(axis=-1, keepdims=True)
    return float((np.abs(actual - expected) / np.maximum(expected, floor)).max())


def round_activations(x: np.ndarray, bits: int) -> np.ndarray:
    """Each 32 inputs as integers of so many bits times a scale: f64 of the shape of x."""
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(blocks * inverse).astype(np.float64) * scale).reshape(x.shape)


def packed_product(name: str, weights: np.ndarray, x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """x [n_tokens, n_in] times stored weights [n_out, bytes] of a type, activations rounded; in f64.

    Returns:
        The product [n_tokens, n_out], and the sum of the absolute values of what is added up for each.
    """
    exact = gguf.quants.dequantize(weights, gguf.GGMLQuantizationType[name.upper()]).astype(np.float64)
    rounded = round_activations(x, bits)
    return rounded @ exact.T, np.abs(rounded) @ np.abs(exact).T


def expert_product(
    name: str, weights: np.ndarray, ids: np.ndarray, x: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """x [n_tokens, 1 or n_used, n_in] times the matrices [n_expert, n_out, bytes] of the experts ids [n_tokens, n_used].

    Returns:
        As packed_product: [n_tokens, n_used, n_out] each.
    """
    pairs = [
        [
            packed_product(name, weights[expert], rows[slot % len(rows)][None], bits)
            for slot, expert in enumerate(chosen)
        ]
        for rows, chosen in zip(x, ids, strict=True)
    ]
    values = np.array(pairs)[..., 0, :]  # [n_tokens, n_used, product or size, n_out]
    return values[:, :, 0], values[:, :, 1]


# Parts of a stored block in the order of llama.cpp's repacked ones: first byte, bytes, bytes of a row that lie together (0:
# those of the form), bits that are flipped.
REPACKED_FIELDS = {
    "q4_0": [(0, 2, 2, 0), (2, 16, 0, 0x88)],
    "q8_0": [(0, 2, 2, 0), (2, 32, 0, 0)],
    "iq4_nl": [(0, 2, 2, 0), (2, 16, 0, 0)],
    "mxfp4": [(0, 1, 1, 0), (1, 16, 0, 0)],
    "q2_K": [(80, 2, 2, 0), (82, 2, 2, 0), (0, 16, 2, 0), (16, 64, 0, 0)],
    "q4_K": [(0, 2, 2, 0), (2, 2, 2, 0), (4, 12, None, 0), (16, 128, 0, 0)],
    "q5_K": [(0, 2, 2, 0), (2, 2, 2, 0), (4, 12, None, 0), (16, 32, 0, 0), (48, 128, 0, 0)],
    "q6_K": [(208, 2, 2, 0), (192, 16, 1, 0), (0, 128, 0, 0), (128, 64, 0, 0)],
}


def scales_by_part(packed: np.ndarray) -> np.ndarray:
    """Scales and minima of six bits [..., 8 rows, 12 bytes] of the parts of each row's block, as those of the rows of
    each part: uint8 [..., 8 parts, 12 bytes]."""
    scales, mins = gguf.quants.Q4_K.get_scale_min(np.ascontiguousarray(packed).reshape(-1, 12))
    scales, mins = (values.reshape(*packed.shape[:-1], 8).swapaxes(-1, -2) for values in (scales, mins))
    high = [(values[..., 4:] >> 4) << 6 for values in (scales, mins)]
    low = [(scales[..., 4:] & 15) | (mins[..., 4:] << 4)]
    return np.concatenate([scales[..., :4] | high[0], mins[..., :4] | high[1], *low], axis=-1).astype(np.uint8)


def repacked(name: str, weights: np.ndarray, rows: int, chunk: int) -> np.ndarray:
    """Stored weights uint8 [n_out, bytes] as llama.cpp repacks them: blocks of groups of rows, interleaved by chunks."""
    n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]][1]
    blocks = weights.reshape(len(weights) // rows, rows, -1, n_bytes).swapaxes(1, 2)  # [group, column, row, byte]
    parts = []
    for first, size, unit, flipped in REPACKED_FIELDS[name]:
        part = blocks[..., first : first + size] ^ np.uint8(flipped)
        if unit is None:
            part = scales_by_part(part)
        else:
            part = part.reshape(*part.shape[:-1], -1, unit or chunk).swapaxes(2, 3)
        parts.append(part.reshape(*blocks.shape[:2], -1))
    return np.concatenate(parts, axis=-1).reshape(weights.shape)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    n_swa: int = 0,
    cap: float = 0.0,
    cap_scale: float = 1.0,
    sinks: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention of the last tokens, in f64.

    Args:
        q: [n_tokens, n_head, n_embd_k], of the tokens in the last of the cells.
        k: [n_cells, n_head_kv, n_embd_k].
        v: [n_cells, n_head_kv, n_embd_v].
        n_swa: cells that a token attends to, 0 for all.
        cap: of the logits, cap * tanh(cap_scale * kq); 0 for none.
        sinks: [n_head] logits that take a share and add nothing.
        mask: [n_tokens, n_cells], added to the logits in place of the causal order.

    Returns:
        [n_tokens, n_head, n_embd_v], and the weights [n_tokens, n_head, n_cells].
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    logits = np.einsum("thd,chd->thc", q, np.repeat(k, group, axis=1))
    logits = scale * (cap * np.tanh(cap_scale * logits) if cap else logits)
    own = np.arange(len(k) - len(q), len(k))[:, None]
    cells = np.arange(len(k))
    if mask is None:
        seen = (cells <= own) & ((cells > own - n_swa) | (n_swa == 0))
        mask = np.where(seen, 0.0, -np.inf)
    logits = logits + mask[:, None]
    if sinks is not None:
        logits = np.concatenate([logits, np.broadcast_to(sinks[None, :, None], (*logits.shape[:2], 1))], axis=-1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True))[..., : len(k)]
    return np.einsum("thc,chd->thd", weights, np.repeat(v, group, axis=1)), weights


KEY_TILE = 64


def to_integers(x: np.ndarray, is_value: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows as integers of 16 bits (values: 14) times a unit each, such that no sum of a query's products with a key leaves
    32 bits."""
    x = x.astype(np.float32)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    norm = np.sqrt(np.square(x, dtype=np.float64).sum(axis=-1, keepdims=True)).astype(np.float32)
    unit = largest / np.float32(8191) if is_value else np.maximum(largest / np.float32(32767), norm / np.float32(46000))
    inverse = np.divide(np.float32(1), unit, out=np.zeros_like(unit), where=unit > 1e-20)
    return np.rint(np.clip(x * inverse, -32767, 32767)).astype(np.int64), unit.astype(np.float64)


def sum_rounded(weights: np.ndarray, values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Weights [n_tokens, n_head, cells of a tile] times integers [cells, n_head, n_embd_v] of these units
    [cells, n_head, 1]: each row of weights, times the units, becomes integers whose largest is 32767 and whose sum is
    262000 at most."""
    weights = weights * units[..., 0].T
    largest, total = weights.max(axis=-1, keepdims=True), weights.sum(axis=-1, keepdims=True)
    none = largest < 1e-20
    scale = np.minimum(32767 / np.where(none, 1, largest), 262000 / np.where(none, 1, total))
    integers = np.rint(weights * np.where(none, 0, scale)).astype(np.int64)
    sums = np.einsum("thc,chd->thd", integers, values)
    assert np.abs(sums).max() < 2**31
    return sums * np.where(none, 0, 1 / scale)


def rounded_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    n_swa: int = 0,
    cap: float = 0.0,
    cap_scale: float = 1.0,
    sinks: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """As attention, over integers: scaled queries, keys and values are rounded by the row, weights by the row and tile of
    keys, which are relative to the largest logit so far. [n_tokens, n_head, n_embd_v]"""
    group = q.shape[1] // k.shape[1]
    queries, units_q = to_integers(q * np.float32(cap_scale if cap else scale), False)
    keys, units_k = (np.repeat(x, group, axis=1) for x in to_integers(k, False))
    values, units_v = (np.repeat(x, group, axis=1) for x in to_integers(v, True))
    own, cells = np.arange(len(k) - len(q), len(k))[:, None], np.arange(len(k))
    seen = ((cells <= own) & ((cells > own - n_swa) | (n_swa == 0))) | (mask is not None)

    largest = np.full(q.shape[:2], -np.inf)
    total, result = np.zeros(q.shape[:2]), np.zeros((*q.shape[:2], v.shape[-1]))
    for begin in range(0, len(k), KEY_TILE):
        tile = slice(begin, begin + KEY_TILE)
        products = np.einsum("thd,chd->thc", queries, keys[tile])
        assert np.abs(products).max() < 2**31
        logits = products * units_q * units_k[tile, :, 0].T
        logits = cap * scale * np.tanh(logits) if cap else logits
        if mask is not None:
            logits = logits + mask[:, None, tile]
        logits = np.where(seen[:, None, tile], logits, -np.inf)
        before, largest = largest, np.maximum(largest, logits.max(axis=-1))
        finite = np.where(np.isinf(largest), 0, largest)  # a row that has seen nothing
        weights, factor = np.exp(logits - finite[..., None]), np.exp(before - finite)
        total = total * factor + weights.sum(axis=-1)
        result = result * factor[..., None] + sum_rounded(weights, values[tile], units_v[tile])
    if sinks is not None:
        top = np.maximum(largest, sinks)
        factor = np.exp(largest - top)
        total, result = total * factor + np.exp(sinks - top), result * factor[..., None]
    return np.divide(result, total[..., None], out=np.zeros_like(result), where=total[..., None] > 0)


def indexer_attention(
    queries: np.ndarray, keys: np.ndarray, of_heads: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """f64 [n]: what an indexer's scores say of attention, by their softmax, summed over the queries of a window.

    Args:
        queries: [window, n_head, width], of the last tokens.
        keys: [n, width], of all tokens.
        of_heads: [window, n_head], how much each query's heads count.
        weights: [window], of the queries; None: 1.
    """
    window, n_head, width = queries.shape
    products = np.maximum(np.einsum("whd,nd->whn", queries, keys, dtype=np.float64), 0)
    scores = np.einsum("wh,whn->wn", of_heads, products) / math.sqrt(n_head * width)
    later = np.arange(len(keys))[None] > np.arange(len(keys) - window, len(keys))[:, None]
    scores = np.where(later, -np.inf, scores)
    softmax = np.exp(scores - scores.max(axis=-1, keepdims=True))
    softmax /= softmax.sum(axis=-1, keepdims=True)
    return (softmax * (1 if weights is None else weights[:, None])).sum(axis=0)


def short_convolution(past: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [channels, taps - 1 + tokens] and outputs [tokens, channels] of `asl_short_convolution`, in f64."""
    joined = np.concatenate([past, x.T], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(joined.astype(np.float64), w.shape[1], axis=1)
    return joined, np.einsum("cti,ci->tc", windows, w)


def delta_nets(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, beta: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """States [heads, n, n] and outputs [tokens, heads, n] of `asl_delta_nets`, in f64."""
    n_head, n = v.shape[1:]
    of_head = np.arange(n_head) % q.shape[1]
    memory, outputs = state.astype(np.float64), np.empty(v.shape)
    for t in range(len(v)):
        memory *= np.exp(g[t].astype(np.float64))[:, None, :]
        keys = k[t, of_head]
        delta = beta[t][:, None] * (v[t] - np.einsum("hji,hi->hj", memory, keys))
        memory += delta[:, :, None] * keys[:, None, :]
        outputs[t] = np.einsum("hji,hi->hj", memory, q[t, of_head]) / n**0.5
    return memory, outputs
