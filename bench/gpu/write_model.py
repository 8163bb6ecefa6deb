"""Writes a GGUF file of a large model's shape with random weights: how fast a prompt runs does not depend on them.

    python bench/gpu/write_model.py llama-3.1-8b /tmp/8b.gguf
    python bench/gpu/write_model.py llama-3.2-1b /tmp/1b.gguf --mix q4_k_m --layers 4

Weights are Q4_K, embedding and output Q8_0; as "q4_k_m", V and the second FFN matrix of about half of the layers are
Q6_K, as llama.cpp chooses them. All layers share one random draw, so that 8 billion weights take seconds.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import gguf
import numpy as np

BLOCK = 256  # weights of a Q4_K or Q6_K block
MIXES = ("q4_k", "q6_k", "q4_k_m")
# Every group of 32 weights has scale 32 and minimum 32, in Q4_K's packing of 6 bits.
SCALES = np.array([0xA0] * 8 + [0x00] * 4, dtype=np.uint8)
N_BYTE_TOKENS = 256
IM_START, IM_END = 3 + N_BYTE_TOKENS, 4 + N_BYTE_TOKENS


@dataclass(frozen=True)
class Shape:
    """Sizes as in the GGUF header."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    rope_base: float

    @property
    def n_embd_kv(self) -> int:
        """Width of the keys of all KV heads."""
        return self.n_embd // self.n_head * self.n_head_kv


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 14336, 128256, 500000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 500000.0),
    "tiny": Shape(4, 256, 4, 2, 512, 512, 10000.0),  # to try this file
}


def q4_k(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    """Rows of Q4_K blocks, uniform around 0 with a variance of 1 / n_in.

    Returns:
        uint8 [n_out, bytes of a row]
    """
    step = 1 / math.sqrt(n_in * (16**2 - 1) / 12)
    blocks = np.empty((n_out, n_in // BLOCK, 144), dtype=np.uint8)
    # a weight is d * 32 * q - dmin * 32: with dmin = 7.5 d the 16 values lie around 0
    blocks[..., :4] = np.float16([step / 32, 7.5 * step / 32]).view(np.uint8)
    blocks[..., 4:16] = SCALES
    blocks[..., 16:] = rng.integers(0, 256, (*blocks.shape[:2], BLOCK // 2), dtype=np.uint8)
    return blocks.reshape(n_out, -1)


def q6_k(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    """Rows of Q6_K blocks, uniform around 0 with a variance of 1 / n_in.

    Returns:
        uint8 [n_out, bytes of a row]
    """
    step = 1 / math.sqrt(n_in * (64**2 - 1) / 12)
    blocks = np.empty((n_out, n_in // BLOCK, 210), dtype=np.uint8)
    # a weight is d * scale * (q - 32)
    blocks[..., :192] = rng.integers(0, 256, (*blocks.shape[:2], 192), dtype=np.uint8)
    blocks[..., 192:208] = 16  # scales
    blocks[..., 208:] = np.float16([step / 16]).view(np.uint8)
    return blocks.reshape(n_out, -1)


def uses_q6_k(mix: str, name: str, layer: int, n_layer: int) -> bool:
    """Whether llama.cpp's Q4_K_M stores this matrix in six bits: the first and last eighth of the layers, and every third
    between."""
    if mix == "q4_k_m":
        more = layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2
        return more and name in ("attn_v", "ffn_down")
    return mix == "q6_k"


def q8_0(rng: np.random.Generator, n_out: int, n_in: int, deviation: float) -> np.ndarray:
    """Rows of Q8_0 blocks, uniform around 0.

    Returns:
        uint8 [n_out, bytes of a row]
    """
    blocks = np.empty((n_out, n_in // 32, 34), dtype=np.uint8)
    blocks[..., :2] = np.float16([deviation / 73.3]).view(np.uint8)  # of -127..127
    blocks[..., 2:] = rng.integers(-127, 128, (*blocks.shape[:2], 32), dtype=np.int8).view(np.uint8)
    return blocks.reshape(n_out, -1)


def write_model(path: str, shape: Shape, mix: str = "q4_k") -> None:
    """Writes the file; its bytes follow from the shape and the mix, one of MIXES."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random weights")
    writer.add_vocab_size(shape.n_vocab)
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_S)
    add_tokenizer(writer, shape.n_vocab)
    _add_weights(writer, shape, mix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """One token a byte; the others of the vocabulary never come up."""
    kinds = gguf.TokenType
    entries = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    entries += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(N_BYTE_TOKENS)]
    entries += [("<|im_start|>", kinds.CONTROL), ("<|im_end|>", kinds.CONTROL)]
    entries += [(f"<unused{i}>", kinds.UNUSED) for i in range(n_vocab - len(entries))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in entries])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([int(kind) for _, kind in entries])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _add_weights(writer: gguf.GGUFWriter, shape: Shape, mix: str) -> None:
    rng = np.random.default_rng(0)
    kind_4, kind_8 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", q8_0(rng, shape.n_vocab, shape.n_embd, 1.0), raw_dtype=kind_8)
    writer.add_tensor(
        "output.weight", q8_0(rng, shape.n_vocab, shape.n_embd, 2 / math.sqrt(shape.n_embd)), raw_dtype=kind_8
    )
    ones = np.ones(shape.n_embd, dtype=np.float32)
    writer.add_tensor("output_norm.weight", ones)
    sizes = {
        "attn_q": (shape.n_embd, shape.n_embd),
        "attn_k": (shape.n_embd_kv, shape.n_embd),
        "attn_v": (shape.n_embd_kv, shape.n_embd),
        "attn_output": (shape.n_embd, shape.n_embd),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff, shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    in_four = {name: q4_k(rng, *size) for name, size in sizes.items()}
    in_six = {name: q6_k(rng, *size) for name, size in sizes.items()} if mix != "q4_k" else {}
    kind_6 = gguf.GGMLQuantizationType.Q6_K
    for layer in range(shape.n_layer):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        for name in sizes:
            six = uses_q6_k(mix, name, layer, shape.n_layer)
            values, kind = (in_six[name], kind_6) if six else (in_four[name], kind_4)
            writer.add_tensor(f"blk.{layer}.{name}.weight", values, raw_dtype=kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path")
    parser.add_argument(
        "--mix", choices=MIXES, default="q4_k", help="types of the layers' matrices (default %(default)s)"
    )
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    write_model(arguments.path, replace(shape, n_layer=arguments.layers or shape.n_layer), arguments.mix)
