"""Tiny random GGUF models, written from a seed, for tests that need no download.

:func:`write_model` writes a complete model file (hyper-parameters, tokenizer, chat
template, random weights) that llama.cpp loads and decodes in milliseconds.  The
weights mean nothing, but they are scaled so that the model behaves like a trained
one where it matters for pruning: attention is neither uniform nor one-hot, every
position influences the later ones, and the logits are spread out.

The file is a pure function of the arguments: the same call writes the same bytes.
The random draws depend on neither ``weight_type`` nor ``n_ctx_train``, so models that
differ in those alone are the same model stored differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

#: Architectures whose prompts can be pruned.  "llama-moe" is a small mixture of
#: experts in the layout of Mixtral: ``general.architecture`` "llama" with four
#: experts in each layer, two of them used for a token.
ARCHITECTURES: tuple[str, ...] = ("llama", "qwen2", "qwen3", "phi3", "llama-moe")

#: Architectures that mix layers with a sliding window with full ones.  In "gpt-oss" attention also has sinks;
#: in "cohere2" only layers with a window rotate queries and keys by position.
SLIDING: tuple[str, ...] = ("gemma3", "gpt-oss", "cohere2")

#: Architectures whose attention adds a bias of distances (ALiBi) and rotates nothing.
ALIBI: tuple[str, ...] = ("refact",)

#: Architectures whose prompts cannot be pruned: "mamba" has a recurrent state and no attention.
UNPRUNABLE: tuple[str, ...] = ("mamba",)

#: Storage types of the weight matrices.
WEIGHT_TYPES: tuple[str, ...] = ("F32", "F16", "Q8_0", "Q4_1")

N_EXPERT = 4
N_EXPERT_USED = 2
SLIDING_WINDOW = 16
SLIDING_WINDOW_PATTERN = 2  # every second layer attends to the whole prompt

SSM_STATE = 16
SSM_CONV = 4

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
IM_START, IM_END = FIRST_BYTE + 256, FIRST_BYTE + 257

#: Multi-character pieces.  A piece is reached by joining two neighbours at a time, so
#: each long piece needs two shorter ones (or characters) that it is made of.
PIECES: tuple[str, ...] = tuple(
    "▁ ▁t he ▁the in er an on re ▁a ou ▁w ▁s at en or ▁o ▁an ▁and ing it is es ▁to ed al ar "
    "▁c ▁b ▁f ▁p ▁m ▁d ▁h ▁l ▁n ▁in ▁is ▁it ion ent le st ro ch ll ve se ▁be ly ow ay ▁y ▁you "
    "om ▁r ▁g ▁e as ur ic".split()
)
N_VOCAB = IM_END + 1 + len(PIECES)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Queries and keys get this gain each, which gives attention scores a standard deviation
# of about 2: with a gain of 1 attention would be almost uniform over a long prompt.
_QK_GAIN = 1.4

# Architectures that read the size of a head from the file; the others need
# n_embd == n_head * head_dim.
_FREE_HEAD_DIM = ("llama", "llama-moe", "qwen3", "gemma3", "gpt-oss")

# Mixtures of experts.
_EXPERTS = ("llama-moe", "gpt-oss")

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}


@dataclass(frozen=True)
class _Shape:
    """The sizes of one model."""

    architecture: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ctx_train: int

    @property
    def n_q(self) -> int:
        """Width of the queries of all heads."""
        return self.n_head * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of the keys (and of the values) of all heads."""
        return self.n_head_kv * self.head_dim


class _Weights:
    """Draws random tensors in a fixed order and hands them to a GGUF writer."""

    def __init__(self, writer: gguf.GGUFWriter, weight_type: str, seed: int) -> None:
        self._writer = writer
        self._type = gguf.GGMLQuantizationType[weight_type]
        self._rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers in float32."""
        return self._rng.standard_normal(shape, dtype=np.float32)

    def add(self, name: str, values: np.ndarray) -> None:
        """Add a tensor that always stays F32 (norms, biases, routers, ...)."""
        self._writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))

    def add_matrix(self, name: str, values: np.ndarray) -> None:
        """Add a weight matrix in the storage type of the model."""
        stored = gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), self._type)
        self._writer.add_tensor(name, stored, raw_dtype=self._type)

    def linear(self, name: str, n_in: int, *n_out: int, gain: float = 1.0) -> None:
        """Add a random matrix (or a stack of them) that keeps the scale of its input."""
        self.add_matrix(name, self.normal(*n_out, n_in) * np.float32(gain / math.sqrt(n_in)))

    def norm(self, name: str, size: int, level: float = 1.0) -> None:
        """Add the weights of a norm: near ``level``, but not all alike."""
        self.add(name, np.float32(level) * (1 + np.float32(0.1) * self.normal(size)))

    def bias(self, name: str, size: int, scale: float = 0.3) -> None:
        """Add a bias vector."""
        self.add(name, np.float32(scale) * self.normal(size))


def write_model(
    path: str | Path,
    architecture: str,
    *,
    seed: int = 0,
    n_layer: int = 6,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int = 32,
    n_ff: int = 256,
    n_ctx_train: int = 4096,
    weight_type: str = "F32",
    n_embd: int | None = None,
    n_ctx_original: int | None = None,
) -> Path:
    """Write a random model of ``architecture`` to ``path`` and return the path.

    ``architecture`` is one of :data:`ARCHITECTURES`, :data:`SLIDING`, :data:`ALIBI` or :data:`UNPRUNABLE`, and
    ``weight_type``, one of :data:`WEIGHT_TYPES`, is how the weight matrices are stored.
    ``n_embd`` is ``n_head * head_dim`` unless given; only llama, llama-moe, qwen3,
    gemma3 and gpt-oss allow another width.  Quantized types need widths that are multiples of 32.
    "mamba" has no heads and ignores ``n_head_kv`` and ``n_ff``. With ``n_ctx_original``,
    "phi3" has rope factors for contexts up to it and others for longer ones (longrope).

    Raises ValueError for an unknown architecture or weight type, or for sizes that do
    not fit each other.
    """
    if architecture not in ARCHITECTURES + SLIDING + ALIBI + UNPRUNABLE:
        known = ", ".join(ARCHITECTURES + SLIDING + ALIBI + UNPRUNABLE)
        raise ValueError(f"unknown architecture {architecture!r}; known: {known}")
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"unknown weight type {weight_type!r}; known: {', '.join(WEIGHT_TYPES)}")
    if n_embd is None:
        n_embd = n_head * head_dim
    elif n_embd != n_head * head_dim and architecture not in _FREE_HEAD_DIM:
        raise ValueError(f"{architecture} needs n_embd == n_head * head_dim")
    if n_head % n_head_kv:
        raise ValueError("n_head must be a multiple of n_head_kv")

    shape = _Shape(architecture, n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_ctx_train)
    path = Path(path)
    writer = gguf.GGUFWriter(path, "llama" if architecture == "llama-moe" else architecture)
    _add_hyper_parameters(writer, shape)
    writer.add_file_type(_FILE_TYPES[weight_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer)
    _add_weights(_Weights(writer, weight_type, seed), shape)
    if n_ctx_original is not None:
        _add_long_rope(writer, n_ctx_original, head_dim)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path


def _add_long_rope(writer: gguf.GGUFWriter, n_ctx_original: int, head_dim: int) -> None:
    """Add rope factors that llama.cpp chooses by the length of the context."""
    writer.add_rope_scaling_orig_ctx_len(n_ctx_original)
    ramp = np.linspace(0.0, 1.0, head_dim // 2, dtype=np.float32)
    writer.add_tensor("rope_factors_short.weight", 1.0 + 0.1 * ramp)
    writer.add_tensor("rope_factors_long.weight", 1.5 + 8.0 * ramp)


def _add_hyper_parameters(writer: gguf.GGUFWriter, shape: _Shape) -> None:
    """Add the keys that llama.cpp needs to build the architecture."""
    # Not the name of the architecture: llama.cpp looks for "phi3" in here, and then
    # expects a certain special token and strips the text after special tokens.
    writer.add_name("tiny random model")
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.architecture == "cohere2":
        writer.add_layer_norm_eps(1e-5)
        writer.add_logit_scale(_logit_gain(shape))
    if shape.architecture == "mamba":
        # Real mamba files say zero here, too: llama.cpp takes it for "no attention".
        writer.add_head_count(0)
        writer.add_feed_forward_length(0)
        writer.add_ssm_conv_kernel(SSM_CONV)
        writer.add_ssm_inner_size(2 * shape.n_embd)
        writer.add_ssm_state_size(SSM_STATE)
        writer.add_ssm_time_step_rank(_ssm_rank(shape))
        return

    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.head_dim)
    if shape.architecture in _FREE_HEAD_DIM:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if shape.architecture in _EXPERTS:
        writer.add_expert_count(N_EXPERT)
        writer.add_expert_used_count(N_EXPERT_USED)
    if shape.architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(shape.n_ff)
    if shape.architecture in SLIDING:
        writer.add_sliding_window(SLIDING_WINDOW)
        writer.add_sliding_window_pattern(SLIDING_WINDOW_PATTERN)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Add a small SentencePiece tokenizer: special tokens, one token a byte, pieces."""
    kinds = gguf.TokenType
    entries: list[tuple[str, float, gguf.TokenType]] = [
        ("<unk>", 0.0, kinds.UNKNOWN),
        ("<s>", 0.0, kinds.CONTROL),
        ("</s>", 0.0, kinds.CONTROL),
    ]
    entries += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    entries += [("<|im_start|>", 0.0, kinds.CONTROL), ("<|im_end|>", 0.0, kinds.CONTROL)]
    # Distinct falling scores leave the order of merges no ties.
    entries += [(piece, -1.0 - rank, kinds.NORMAL) for rank, piece in enumerate(PIECES)]
    tokens, scores, types = zip(*entries)

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    # No space before the text, so that text comes back from its tokens unchanged.
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(weights: _Weights, shape: _Shape) -> None:
    """Add every tensor of the model."""
    embedding = weights.normal(N_VOCAB, shape.n_embd)
    if shape.architecture == "gemma3":
        # gemma multiplies the embedding by this factor when it reads it.
        embedding /= np.float32(math.sqrt(shape.n_embd))
    weights.add_matrix("token_embd.weight", embedding)

    if shape.architecture != "cohere2":  # which reads tokens and writes logits with one matrix
        output = weights.normal(N_VOCAB, shape.n_embd) * np.float32(_logit_gain(shape))
        # A logit of exactly 0 never wins against hundreds of random ones, so greedy
        # generation does not end after a random number of tokens.
        output[[UNK, BOS, EOS, IM_START, IM_END]] = 0
        weights.add_matrix("output.weight", output)
    weights.norm("output_norm.weight", shape.n_embd)

    for layer in range(shape.n_layer):
        prefix = f"blk.{layer}."
        weights.norm(prefix + "attn_norm.weight", shape.n_embd)
        if shape.architecture == "mamba":
            _add_mamba(weights, shape, prefix)
        else:
            _add_attention(weights, shape, prefix)
            _add_feed_forward(weights, shape, prefix)


def _logit_gain(shape: _Shape) -> float:
    """Twice the neutral scale: the logits have a standard deviation of about 2."""
    return 2 / math.sqrt(shape.n_embd)


def _add_attention(weights: _Weights, shape: _Shape, prefix: str) -> None:
    """Add the attention tensors of one layer."""
    arch = shape.architecture
    has_qk_norm = arch in ("qwen3", "gemma3")
    # A norm on queries and keys undoes any gain of the matrices, so it carries the gain.
    gain = 1.0 if has_qk_norm else _QK_GAIN
    if arch == "phi3":
        scale = np.repeat(np.float32([gain, gain, 1.0]), [shape.n_q, shape.n_kv, shape.n_kv])
        fused = weights.normal(shape.n_q + 2 * shape.n_kv, shape.n_embd)
        fused *= scale[:, None] / np.float32(math.sqrt(shape.n_embd))
        weights.add_matrix(prefix + "attn_qkv.weight", fused)
    else:
        weights.linear(prefix + "attn_q.weight", shape.n_embd, shape.n_q, gain=gain)
        weights.linear(prefix + "attn_k.weight", shape.n_embd, shape.n_kv, gain=gain)
        weights.linear(prefix + "attn_v.weight", shape.n_embd, shape.n_kv)
    if arch in ("qwen2", "gpt-oss"):
        weights.bias(prefix + "attn_q.bias", shape.n_q)
        weights.bias(prefix + "attn_k.bias", shape.n_kv)
        weights.bias(prefix + "attn_v.bias", shape.n_kv)
    if has_qk_norm:
        weights.norm(prefix + "attn_q_norm.weight", shape.head_dim, _QK_GAIN)
        weights.norm(prefix + "attn_k_norm.weight", shape.head_dim, _QK_GAIN)
    weights.linear(prefix + "attn_output.weight", shape.n_q, shape.n_embd)
    if arch == "gpt-oss":
        weights.bias(prefix + "attn_output.bias", shape.n_embd)
        # As large as a row's largest logits: sinks take a good part of the attention.
        weights.add(prefix + "attn_sinks.weight", 4 + weights.normal(shape.n_head))
    if arch in ("gemma3", "gpt-oss"):
        weights.norm(prefix + "post_attention_norm.weight", shape.n_embd)


def _add_feed_forward(weights: _Weights, shape: _Shape, prefix: str) -> None:
    """Add the feed-forward tensors of one layer."""
    arch = shape.architecture
    stack: Sequence[int] = (N_EXPERT,) if arch in _EXPERTS else ()
    suffix = "_exps.weight" if stack else ".weight"

    if arch not in ("gpt-oss", "cohere2"):  # named after attention in one; the other has a single norm a layer
        weights.norm(prefix + "ffn_norm.weight", shape.n_embd)
    if stack:
        # Model converters keep the router in F32, too: it is small and decides a lot.
        router = weights.normal(N_EXPERT, shape.n_embd) / np.float32(math.sqrt(shape.n_embd))
        weights.add(prefix + "ffn_gate_inp.weight", router)
    if arch == "phi3":  # gate and up in one matrix, the gate first
        weights.linear(prefix + "ffn_up.weight", shape.n_embd, 2 * shape.n_ff)
    else:
        weights.linear(prefix + "ffn_gate" + suffix, shape.n_embd, *stack, shape.n_ff)
        weights.linear(prefix + "ffn_up" + suffix, shape.n_embd, *stack, shape.n_ff)
    # The product of gate and up is smaller than its factors; the gain makes up for it.
    weights.linear(prefix + "ffn_down" + suffix, shape.n_ff, *stack, shape.n_embd, gain=1.5)
    if arch == "gemma3":
        weights.norm(prefix + "post_ffw_norm.weight", shape.n_embd)
    if arch == "gpt-oss":
        weights.bias(prefix + "ffn_gate_inp.bias", N_EXPERT)
        for name, size in (("gate", shape.n_ff), ("up", shape.n_ff), ("down", shape.n_embd)):
            weights.add(f"{prefix}ffn_{name}_exps.bias", np.float32(0.3) * weights.normal(N_EXPERT, size))


def _ssm_rank(shape: _Shape) -> int:
    """Rank of the time step projection of mamba."""
    return max(1, shape.n_embd // 16)


def _add_mamba(weights: _Weights, shape: _Shape, prefix: str) -> None:
    """Add the tensors of one mamba layer."""
    n_inner = 2 * shape.n_embd  # llama.cpp allows no other expansion
    rank = _ssm_rank(shape)
    weights.linear(prefix + "ssm_in.weight", shape.n_embd, 2 * n_inner)
    # These two have rows shorter than a quantization block.
    weights.add(prefix + "ssm_conv1d.weight", weights.normal(n_inner, SSM_CONV) / 2)
    time_step = weights.normal(n_inner, rank) / np.float32(math.sqrt(rank))
    weights.add(prefix + "ssm_dt.weight", time_step)
    weights.bias(prefix + "ssm_conv1d.bias", n_inner, 0.1)
    weights.linear(prefix + "ssm_x.weight", n_inner, rank + 2 * SSM_STATE)
    # Time steps well below 1 and these decay rates remember tens of tokens.
    weights.add(prefix + "ssm_dt.bias", weights.normal(n_inner) - 3)
    decay = -np.arange(1, SSM_STATE + 1, dtype=np.float32)
    weights.add(prefix + "ssm_a", np.tile(decay, (n_inner, 1)))
    weights.norm(prefix + "ssm_d", n_inner)
    weights.linear(prefix + "ssm_out.weight", n_inner, shape.n_embd)
