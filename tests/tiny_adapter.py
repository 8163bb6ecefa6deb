"""A LoRA adapter or a control vector for the tiny model, or one of another width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

N_EMBD, N_LAYER = 128, 6
"""of the tiny model"""


def write_adapter(
    path: Path,
    seed: int = 0,
    rank: int = 4,
    n_embd: int = N_EMBD,
    n_layer: int = N_LAYER,
    size: float = 1.0,
    invocation: Sequence[int] = (),
) -> Path:
    """A LoRA adapter of random numbers for a model of the llama architecture whose queries are as wide as its hidden states.

    Args:
        size: standard deviation of the numbers.
        invocation: tokens that begin it (aLoRA).
    """
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    if invocation:
        key = "adapter.alora.invocation_tokens"
        writer.add_key_value(key, list(invocation), GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT32)
    rng = np.random.default_rng(seed)
    for layer in range(n_layer):
        for suffix, shape in (("a", (rank, n_embd)), ("b", (n_embd, rank))):
            tensor = np.float32(size) * rng.standard_normal(shape, dtype=np.float32)
            writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_{suffix}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_control_vector(path: Path, n_embd: int = N_EMBD, n_layer: int = N_LAYER, size: float = 1.0) -> Path:
    """Random numbers, added behind each layer but the first."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "controlvector")
    rng = np.random.default_rng(0)
    for layer in range(1, n_layer):
        writer.add_tensor(f"direction.{layer}", np.float32(size) * rng.standard_normal(n_embd, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
