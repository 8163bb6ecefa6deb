"""A LoRA adapter for the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

N_EMBD, N_LAYER = 128, 6
"""of the tiny model"""


def write_adapter(path: Path, seed: int = 0, rank: int = 4) -> Path:
    """A LoRA adapter of random numbers for the tiny model."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    rng = np.random.default_rng(seed)
    for layer in range(N_LAYER):
        for suffix, shape in (("a", (rank, N_EMBD)), ("b", (N_EMBD, rank))):
            tensor = rng.standard_normal(shape, dtype=np.float32)
            writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_{suffix}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
