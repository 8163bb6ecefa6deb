"""Writes a GGUF file of Gemma 4 E2B's shape with random weights in Q4_K: per-layer embeddings, K/V shared from layer 15 on.

    python bench/gpu/write_gemma4.py /tmp/e2b.gguf
    asl-gguf bench prefill -m /tmp/e2b.gguf --tokens 512 --runs 1 -t 1 --dequant off --policy fastkv:tsp_layer=9

How fast a prompt runs does not depend on the weights; answers mean nothing. Matrices of one size share one random draw. The
vocabulary is smaller than the model's: a prefill computes the output head for one token only.
"""

from __future__ import annotations

import argparse
import math

import gguf
import numpy as np
from write_model import add_tokenizer, q4_k, q8_0

N_LAYER, N_EMBD, N_FF, N_PER_LAYER = 35, 1536, 6144, 256
N_HEAD, HEAD, HEAD_SLIDING, WINDOW = 8, 512, 256, 512
N_OWN = 15
"""layers with K/V of their own; the others' FFN is twice as wide"""
SLIDING = [layer % 5 != 4 for layer in range(N_LAYER)]
NUMBERS = {
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "attention.key_length_swa": HEAD_SLIDING,
    "attention.value_length_swa": HEAD_SLIDING,
    "attention.shared_kv_layers": N_LAYER - N_OWN,
    "embedding_length_per_layer_input": N_PER_LAYER,
    "rope.dimension_count": HEAD,
    "rope.dimension_count_swa": HEAD_SLIDING,
}
Q4_K, Q8_0 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q8_0


def write_gemma4(path: str, n_vocab: int) -> None:
    """Writes the file."""
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_name("random weights")
    writer.add_vocab_size(n_vocab)
    writer.add_context_length(32768)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length([_n_ff(layer) for layer in range(N_LAYER)])
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WINDOW)
    writer.add_sliding_window_pattern(SLIDING)
    for name, value in NUMBERS.items():
        writer.add_uint32(f"gemma4.{name}", value)
    writer.add_float32("gemma4.rope.freq_base", 1e6)
    writer.add_float32("gemma4.rope.freq_base_swa", 1e4)
    writer.add_float32("gemma4.final_logit_softcapping", 30.0)
    add_tokenizer(writer, n_vocab)
    rng = np.random.default_rng(0)
    _add_shared(writer, rng, n_vocab)
    _add_layers(writer, rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _n_ff(layer: int) -> int:
    return N_FF if layer < N_OWN else 2 * N_FF


def _ones(n: int) -> np.ndarray:
    return np.ones(n, dtype=np.float32)


def _add_shared(writer: gguf.GGUFWriter, rng: np.random.Generator, n_vocab: int) -> None:
    width = N_LAYER * N_PER_LAYER
    writer.add_tensor("token_embd.weight", q8_0(rng, n_vocab, N_EMBD, 1.0), raw_dtype=Q8_0)
    writer.add_tensor("per_layer_token_embd.weight", q8_0(rng, n_vocab, width, 1.0), raw_dtype=Q8_0)
    projection = rng.standard_normal((width, N_EMBD), dtype=np.float32) / math.sqrt(N_EMBD)
    writer.add_tensor("per_layer_model_proj.weight", projection.astype(np.float16))
    writer.add_tensor("per_layer_proj_norm.weight", _ones(N_PER_LAYER))
    writer.add_tensor("output_norm.weight", _ones(N_EMBD))
    writer.add_tensor("rope_freqs.weight", _ones(HEAD // 2))


def _add_layers(writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for layer in range(N_LAYER):
        n_head = HEAD_SLIDING if SLIDING[layer] else HEAD
        n_ff, n_query = _n_ff(layer), N_HEAD * n_head
        norms = dict.fromkeys(("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm"), N_EMBD)
        norms |= {"attn_q_norm": n_head, "attn_k_norm": n_head, "layer_output_scale": 1}
        for name, n in norms.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", _ones(n))
        matrices = {
            "attn_q": (n_query, N_EMBD),
            "attn_k": (n_head, N_EMBD),
            "attn_v": (n_head, N_EMBD),
            "attn_output": (N_EMBD, n_query),
            "ffn_gate": (n_ff, N_EMBD),
            "ffn_up": (n_ff, N_EMBD),
            "ffn_down": (N_EMBD, n_ff),
            "inp_gate": (N_PER_LAYER, N_EMBD),
            "proj": (N_EMBD, N_PER_LAYER),
        }
        for name, size in matrices.items():
            if size not in drawn:
                drawn[size] = q4_k(rng, *size)
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn[size], raw_dtype=Q4_K)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="file to write")
    parser.add_argument("--vocab", type=int, default=2048, help="tokens of the vocabulary (default %(default)s)")
    arguments = parser.parse_args()
    write_gemma4(arguments.path, arguments.vocab)
