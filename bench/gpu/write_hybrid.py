"""Writes a GGUF file of Qwen3.5-0.8B's shape with random weights in Q8_0: gated delta nets, every fourth layer attends.

    python bench/gpu/write_hybrid.py /tmp/hybrid.gguf
    asl-gguf bench prefill -m /tmp/hybrid.gguf --tokens 2048 --runs 3 -t 1 --policy fastkv:tsp_layer=11

How fast a prompt runs does not depend on the weights; answers mean nothing. All layers share one random draw. The
vocabulary is smaller than the model's (--vocab): a prefill computes the output head for one token only.
"""

from __future__ import annotations

import argparse
import math

import gguf
import numpy as np
from write_model import add_tokenizer, q8_0

N_LAYER, N_EMBD, N_FF = 24, 1024, 3584
N_HEAD, N_HEAD_KV, HEAD = 8, 2, 256
N_STATE_HEAD, STATE, CONV = 16, 128, 4
INTERVAL = 4
ROPE = [11, 11, 10, 0]
"""sections of M-RoPE: a quarter of a head"""


def write_hybrid(path: str, n_vocab: int) -> None:
    """Writes the file."""
    writer = gguf.GGUFWriter(path, "qwen35")
    writer.add_name("random weights")
    writer.add_vocab_size(n_vocab)
    writer.add_context_length(262144)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(2 * sum(ROPE))
    writer.add_rope_dimension_sections(ROPE)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(N_STATE_HEAD * STATE)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(N_STATE_HEAD)
    writer.add_ssm_group_count(N_STATE_HEAD)
    writer.add_uint32("qwen35.full_attention_interval", INTERVAL)
    add_tokenizer(writer, n_vocab)
    _add_weights(writer, n_vocab)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q8_0
    n_inner = N_STATE_HEAD * STATE
    sizes = {
        "ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF),
        "attn_q": (2 * N_HEAD * HEAD, N_EMBD), "attn_k": (N_HEAD_KV * HEAD, N_EMBD), "attn_v": (N_HEAD_KV * HEAD, N_EMBD),
        "attn_output": (N_EMBD, N_HEAD * HEAD),
        "attn_qkv": (3 * n_inner, N_EMBD), "attn_gate": (n_inner, N_EMBD), "ssm_out": (N_EMBD, n_inner),
        "ssm_beta": (N_STATE_HEAD, N_EMBD), "ssm_alpha": (N_STATE_HEAD, N_EMBD),
    }  # fmt: skip
    matrices = {name: q8_0(rng, *size, 1 / math.sqrt(size[1])) for name, size in sizes.items()}
    ones = {"attn_norm": N_EMBD, "post_attention_norm": N_EMBD}
    full = {"attn_q", "attn_k", "attn_v", "attn_output"}
    writer.add_tensor("token_embd.weight", q8_0(rng, n_vocab, N_EMBD, 1.0), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, dtype=np.float32))
    for layer in range(N_LAYER):
        attends = (layer + 1) % INTERVAL == 0
        norms = ones | ({"attn_q_norm": HEAD, "attn_k_norm": HEAD} if attends else {"ssm_norm": STATE})
        for name, size in norms.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, dtype=np.float32))
        if not attends:
            conv = rng.standard_normal((3 * n_inner, CONV), dtype=np.float32) / 2
            writer.add_tensor(f"blk.{layer}.ssm_conv1d.weight", conv)
            writer.add_tensor(f"blk.{layer}.ssm_dt.bias", np.ones(N_STATE_HEAD, dtype=np.float32))
            writer.add_tensor(f"blk.{layer}.ssm_a", np.full(N_STATE_HEAD, -0.1, dtype=np.float32))
        for name, values in matrices.items():
            if name.startswith("ffn") or (name in full) is attends:
                writer.add_tensor(f"blk.{layer}.{name}.weight", values, raw_dtype=kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--vocab", type=int, default=32768)
    arguments = parser.parse_args()
    write_hybrid(arguments.path, arguments.vocab)
