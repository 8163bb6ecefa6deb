"""Writes a GGUF file of a large model's shape with random weights: how fast a prompt runs does not depend on them.

    python bench/gpu/write_model.py llama-3.1-8b /tmp/8b.gguf
    python bench/gpu/write_model.py llama-3.2-1b /tmp/1b.gguf --mix q4_k_m --layers 4

    python bench/gpu/write_model.py qwen3-30b-a3b /tmp/experts.gguf --mix q4_k_m --layers 2

Weights are Q4_K, embedding and output Q8_0; as "q4_k_m", V and the second FFN matrix of about half of the layers are
Q6_K, as llama.cpp chooses them; as "mxfp4", experts are MXFP4 and all else Q8_0, as in files of gpt-oss; as "q8_0", all
is Q8_0. All layers share one random draw, so that 8 billion weights take seconds.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import gguf
import numpy as np

BLOCK = 256  # weights of a Q4_K or Q6_K block
MIXES = ("q4_k", "q6_k", "q4_k_m", "q8_0", "mxfp4")
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
    head_dim: int = 0  # 0: n_embd / n_head
    n_expert: int = 0  # matrices of the FFN, of n_ff each; 0: one
    n_expert_used: int = 0

    @property
    def n_embd_head(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each matrix of a layer."""
        n_q, n_kv = self.n_head * self.n_embd_head, self.n_head_kv * self.n_embd_head
        experts, suffix = ((self.n_expert,), "_exps") if self.n_expert else ((), "")
        return {
            "attn_q": (n_q, self.n_embd),
            "attn_k": (n_kv, self.n_embd),
            "attn_v": (n_kv, self.n_embd),
            "attn_output": (self.n_embd, n_q),
            "ffn_gate" + suffix: (*experts, self.n_ff, self.n_embd),
            "ffn_up" + suffix: (*experts, self.n_ff, self.n_embd),
            "ffn_down" + suffix: (*experts, self.n_embd, self.n_ff),
        }


SHAPES = {
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 14336, 128256, 500000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 500000.0),
    "qwen3-30b-a3b": Shape(48, 2048, 32, 4, 768, 151936, 1000000.0, 128, 128, 8),
    "gpt-oss-20b": Shape(24, 2880, 64, 8, 2880, 201088, 150000.0, 64, 32, 4),  # its sizes: computed as Qwen3's MoE
    "tiny": Shape(4, 256, 4, 2, 512, 512, 10000.0),  # to try this file
    "tiny-experts": Shape(4, 256, 4, 2, 512, 512, 10000.0, 0, 8, 2),
    "long": Shape(3, 256, 1, 1, 512, 512, 500000.0, 64),  # as "q8_0": 131,072 tokens in minutes on one core
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
        return more and name.startswith(("attn_v", "ffn_down"))
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


def mxfp4(rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    """Rows of MXFP4 blocks around 0 with a variance of about 1 / n_in.

    Returns:
        uint8 [n_out, bytes of a row]
    """
    blocks = np.empty((n_out, n_in // 32, 17), dtype=np.uint8)
    blocks[..., 0] = 128 + round(math.log2(1 / (5.85 * math.sqrt(n_in))))  # the 16 values have a deviation of 5.85
    blocks[..., 1:] = rng.integers(0, 256, (*blocks.shape[:2], 16), dtype=np.uint8)
    return blocks.reshape(n_out, -1)


def write_model(path: str, shape: Shape, mix: str = "q4_k") -> None:
    """Writes the file; its bytes follow from the shape and the mix, one of MIXES."""
    writer = gguf.GGUFWriter(path, "qwen3moe" if shape.n_expert else "llama")
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
    writer.add_rope_dimension_count(shape.n_embd_head)
    if shape.head_dim or shape.n_expert:
        writer.add_key_length(shape.n_embd_head)
        writer.add_value_length(shape.n_embd_head)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
        writer.add_expert_feed_forward_length(shape.n_ff)
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


Stored = tuple[np.ndarray, gguf.GGMLQuantizationType]


def draw(rng: np.random.Generator, kind: gguf.GGMLQuantizationType, size: tuple[int, ...]) -> Stored:
    """A matrix of a layer, or those of its experts."""
    n_out, n_in = math.prod(size[:-1]), size[-1]
    kinds = gguf.GGMLQuantizationType
    if kind == kinds.Q8_0:
        values = q8_0(rng, n_out, n_in, 1 / math.sqrt(n_in))
    else:
        values = {kinds.Q4_K: q4_k, kinds.Q6_K: q6_k, kinds.MXFP4: mxfp4}[kind](rng, n_out, n_in)
    return values.reshape(*size[:-1], -1), kind


def _add_weights(writer: gguf.GGUFWriter, shape: Shape, mix: str) -> None:
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType
    embedding = q8_0(rng, shape.n_vocab, shape.n_embd, 1.0)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=kinds.Q8_0)
    output = q8_0(rng, shape.n_vocab, shape.n_embd, 2 / math.sqrt(shape.n_embd))
    writer.add_tensor("output.weight", output, raw_dtype=kinds.Q8_0)
    ones = np.ones(shape.n_embd, dtype=np.float32)
    writer.add_tensor("output_norm.weight", ones)
    if mix in ("q8_0", "mxfp4"):
        of_experts = kinds.MXFP4 if mix == "mxfp4" else kinds.Q8_0
        usual = {
            name: draw(rng, of_experts if len(size) > 2 else kinds.Q8_0, size) for name, size in shape.sizes().items()
        }
    else:
        usual = {name: draw(rng, kinds.Q4_K, size) for name, size in shape.sizes().items()}
    in_six = {name: draw(rng, kinds.Q6_K, size) for name, size in shape.sizes().items() if mix in ("q6_k", "q4_k_m")}
    for layer in range(shape.n_layer):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        if shape.n_expert:
            _add_router(writer, shape, layer)
        for name in usual:
            six = uses_q6_k(mix, name, layer, shape.n_layer)
            values, kind = in_six[name] if six else usual[name]
            writer.add_tensor(f"blk.{layer}.{name}.weight", values, raw_dtype=kind)


def _add_router(writer: gguf.GGUFWriter, shape: Shape, layer: int) -> None:
    """What chooses experts, and the norms of queries and keys that such models have."""
    router = np.random.default_rng(layer).standard_normal((shape.n_expert, shape.n_embd), dtype=np.float32)
    writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", router / np.float32(math.sqrt(shape.n_embd)))
    for name in ("attn_q_norm", "attn_k_norm"):
        writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(shape.n_embd_head, dtype=np.float32))


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
