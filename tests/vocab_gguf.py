"""Vocabularies without weights, one for each pre-tokenizer that llama.cpp knows."""

from __future__ import annotations

import random
from pathlib import Path

import gguf

PRE_TOKENIZERS = (
    "default llama-bpe jais-2 dbrx deepseek-llm deepseek-v3 spark2_5 youtu deepseek-coder falcon starcoder gpt-2 qwen2 qwen35 "
    "poro-chat glm4 viking tekken chameleon gpt-4o granite-embed-multi-97m granite-embed-multi-311m tiny_aya kimi-k2 superbpe "
    "bailingmoe seed-coder ufakzeka grok-2 afmoe laguna exaone-moe gemma4 sarvam-moe minicpm5 minimax-m2 hunyuan hunyuan-dense "
    "hy_v4 joyai-llm llama4 bloom gpt3-finnish exaone4 trillion smaug-bpe stablelm2 mpt"
).split()
"""at least one of each set of expressions in llm_tokenizer_bpe of llama-vocab.cpp"""
RAW = ("gemma4", "sarvam-moe")
"""vocabularies of characters; the others are of bytes"""
_LETTERS = "abcdeABCDE019.,-'!é雪の"


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a vocabulary of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_vocabulary(path: Path, pre: str, seed: int = 0) -> Path:
    """All bytes, and random merges of neighbours, so that tokens tell where words end."""
    rng, letters = random.Random(seed), byte_letters()
    if pre in RAW:
        tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *_LETTERS]
        parts = ["▁", *_LETTERS]
    else:
        tokens = list(letters)
        parts = [letters[byte] for byte in set("".join(_LETTERS).encode()) | {9, 10, 13, 32}]
    merges, single = {}, list(parts)
    for i in range(900):
        left, right = (rng.choice(single if i < 600 else parts) for _ in "lr")
        if left + right not in merges and len(left + right) < 8:
            merges[left + right] = f"{left} {right}"
            parts.append(left + right)
    tokens += [one for one in merges if one not in tokens]
    types = [gguf.TokenType.BYTE if pre in RAW and one.startswith("<0x") else gguf.TokenType.NORMAL for one in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_tokenizer_model("gemma4" if pre == "gemma4" else "gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges(list(merges.values()))
    writer.add_bos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
