"""What selection can save at most, by counting arithmetic."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

from ..models.parts import parts_of


def layer_parameters(path: str, n_layer: int) -> float:
    """Weights of one layer that a token is multiplied with: the mean over the layers, all experts counted."""
    tensors = (tensor for part in parts_of(Path(path)) for tensor in GGUFReader(part).tensors)
    return sum(int(tensor.n_elements) for tensor in tensors if tensor.name.startswith("blk.")) / n_layer


def linear_limit(n_layer: int, selection_layer: int | None, n_tokens: int, n_kept: int) -> float:
    """((s + 1) + (L - s - 1) k / n) / L: each layer costs as much as it has tokens."""
    if selection_layer is None:
        return 1.0
    full = selection_layer + 1
    return (full + (n_layer - full) * n_kept / n_tokens) / n_layer


def full_limit(
    n_layer: int,
    selection_layer: int | None,
    n_tokens: int,
    n_kept: int,
    *,
    parameters: float,
    n_embd_attn: int,
    n_ubatch: int,
) -> float:
    """The same with attention's quadratic part.

    Args:
        parameters: weights of a layer.
        n_embd_attn: query heads times elements of a head.
        n_ubatch: a chunk attends to all cells up to its own end, masked ones included.
    """

    def cost(n: int) -> float:
        # 2 operations per weight and token; Q K^T and A V take 2 per element each
        mean_keys = (n + min(n, n_ubatch)) / 2
        return 2 * parameters * n + 4 * n_embd_attn * n * mean_keys

    if selection_layer is None:
        return 1.0
    full = selection_layer + 1
    return (full + (n_layer - full) * cost(n_kept) / cost(n_tokens)) / n_layer
