"""One token through a tiny llama model in NumPy, on K/V rows that the caller chooses: what decoding computes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

EPSILON = 1e-5
ROPE_BASE = 10000.0


class NumpyLlama:
    """A model that tiny_gguf.write_model(path, "llama") wrote, its weights in float32; or "refact", which has ALiBi.

    Args:
        slopes: float [n_head], what each head takes from a logit for each token between query and key, where nothing is
            rotated; None: by RoPE.
    """

    def __init__(self, path: Path, n_layer: int = 6, n_head: int = 4, slopes: np.ndarray | None = None) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.n_layer, self.n_head, self._slopes = n_layer, n_head, slopes

    def decode(
        self,
        token: int,
        position: int,
        keys: list[np.ndarray],
        values: list[np.ndarray],
        positions: list[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """The token after the given rows, which may be of another number in each layer.

        Args:
            keys, values: per layer float32 [n, n_head_kv, d]; keys after RoPE.
            positions: per layer int [n, n_head_kv], of rows that were there before the first call; later ones stand at
                this token's and before; where there are slopes.

        Returns:
            logits float32 [n_vocab], and the rows with the token's own added.
        """
        x, keys, values = self._weights["token_embd.weight"][token], list(keys), list(values)
        for layer in range(self.n_layer):
            h = self._norm(x, f"blk.{layer}.attn_norm")
            q, k, v = (self._linear(h, f"blk.{layer}.attn_{name}") for name in "qkv")
            head_dim = keys[layer].shape[-1]
            q, k, v = (part.reshape(-1, head_dim) for part in (q, k, v))
            k = rope(k, position) if self._slopes is None else k
            keys[layer] = np.concatenate([keys[layer], k[None]])
            values[layer] = np.concatenate([values[layer], v[None]])
            if self._slopes is None:
                mixed = attend(rope(q, position), keys[layer], values[layer])
            else:
                assert positions is not None
                n_old = len(positions[layer])
                later = np.arange(position - (len(keys[layer]) - n_old) + 1, position + 1)
                at = np.concatenate([positions[layer], np.repeat(later[:, None], keys[layer].shape[1], axis=1)])
                bias = -np.repeat(position - at, self.n_head // at.shape[1], axis=1).T * self._slopes[:, None]
                mixed = attend(q, keys[layer], values[layer], bias)
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


def attend(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """[n_head, d] from [n_head, d] queries, [n, n_head_kv, d] rows and a bias [n_head, n] of the logits."""
    group = queries.shape[0] // keys.shape[1]
    keys, values = (np.repeat(rows, group, axis=1) for rows in (keys, values))
    logits = np.einsum("hd,nhd->hn", queries, keys) / np.sqrt(queries.shape[-1]) + bias
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(axis=-1, keepdims=True), values)
