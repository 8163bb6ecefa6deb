"""One token through a tiny llama model in NumPy, on K/V rows that the caller chooses: what decoding computes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

EPSILON = 1e-5
ROPE_BASE = 10000.0


class NumpyLlama:
    """A model that tiny_gguf.write_model(path, "llama") wrote, its weights in float32."""

    def __init__(self, path: Path, n_layer: int = 6, n_head: int = 4) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.n_layer, self.n_head = n_layer, n_head

    def decode(
        self, token: int, position: int, keys: list[np.ndarray], values: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """The token after the given rows, which may be of another number in each layer.

        Args:
            keys, values: per layer float32 [n, n_head_kv, d]; keys after RoPE.

        Returns:
            logits float32 [n_vocab], and the rows with the token's own added.
        """
        x, keys, values = self._weights["token_embd.weight"][token], list(keys), list(values)
        for layer in range(self.n_layer):
            h = self._norm(x, f"blk.{layer}.attn_norm")
            q, k, v = (self._linear(h, f"blk.{layer}.attn_{name}") for name in "qkv")
            head_dim = keys[layer].shape[-1]
            q, k, v = (part.reshape(-1, head_dim) for part in (q, k, v))
            keys[layer] = np.concatenate([keys[layer], rope(k, position)[None]])
            values[layer] = np.concatenate([values[layer], v[None]])
            mixed = attend(rope(q, position), keys[layer], values[layer])
            x = x + self._linear(mixed.reshape(-1), f"blk.{layer}.attn_output")
            h = self._norm(x, f"blk.{layer}.ffn_norm")
            gate, up = (self._linear(h, f"blk.{layer}.ffn_{name}") for name in ("gate", "up"))
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")
        return self._linear(self._norm(x, "output_norm"), "output"), keys, values

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return self._weights[f"{name}.weight"] @ x

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + EPSILON) * self._weights[f"{name}.weight"]


def rope(heads: np.ndarray, position: int) -> np.ndarray:
    """Rotates neighbouring elements of [n_head, d] by the position."""
    d = heads.shape[-1]
    angle = position * ROPE_BASE ** (-np.arange(0, d, 2) / d)
    even, odd = heads[:, 0::2], heads[:, 1::2]
    rotated = np.stack(
        [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], axis=-1
    )
    return rotated.reshape(heads.shape).astype(np.float32)


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[n_head, d] from [n_head, d] queries and [n, n_head_kv, d] rows."""
    group = queries.shape[0] // keys.shape[1]
    keys, values = (np.repeat(rows, group, axis=1) for rows in (keys, values))
    logits = np.einsum("hd,nhd->hn", queries, keys) / np.sqrt(queries.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(axis=-1, keepdims=True), values)
