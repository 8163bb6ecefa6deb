"""The tiny random models themselves: they load, decode, tokenize, and repeat exactly."""

from __future__ import annotations

import functools
from contextlib import closing

import llama_cpp
import numpy as np
import pytest

import asl_gguf  # noqa: F401  (selects the library before llama_cpp is imported)
from tiny_gguf import (
    ARCHITECTURES,
    BOS,
    EOS,
    N_VOCAB,
    PIECES,
    SLIDING,
    UNPRUNABLE,
    WEIGHT_TYPES,
    write_model,
)

ALL = ARCHITECTURES + SLIDING + UNPRUNABLE
N_PROMPT = 40


def load(path) -> llama_cpp.Llama:
    """Load a model with the logits of every position."""
    return llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True)


def logits(llm: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    """Logits of every position of a prompt, decoded from scratch."""
    llm.reset()
    llm.eval(tokens)
    return np.array(llm.scores[: len(tokens)])


def prompt(seed: int) -> list[int]:
    """A random prompt of 40 tokens."""
    rng = np.random.default_rng(seed)
    return [BOS, *rng.integers(3, N_VOCAB, N_PROMPT - 1).tolist()]


@pytest.fixture(scope="module", params=ALL)
def llm(request, tmp_path_factory):
    """Each architecture with its default sizes, loaded once."""
    path = tmp_path_factory.mktemp("tiny") / f"{request.param}.gguf"
    model = load(write_model(path, request.param))
    yield model
    model.close()


def test_decodes_a_prompt(llm):
    first, second = logits(llm, prompt(1)), logits(llm, prompt(2))

    assert first.shape == (N_PROMPT, N_VOCAB)
    assert np.isfinite(first).all() and np.isfinite(second).all()
    assert 1 < first.std() < 4
    assert np.abs(first[-1] - second[-1]).max() > 1
    # Neither one token for all positions, nor one of the tokens that end generation.
    assert len(set(first.argmax(axis=1).tolist())) > N_PROMPT // 2
    assert EOS not in first.argmax(axis=1)


def test_early_tokens_matter_later(llm):
    tokens = prompt(1)
    changed = [tokens[0], (tokens[1] + 7) % 250 + 3, *tokens[2:]]

    difference = np.abs(logits(llm, tokens) - logits(llm, changed)).max(axis=1)

    assert difference[0] < 1e-3  # the model is causal
    assert difference[-1] > 1e-2


def test_text_round_trips(llm):
    text = "The thing and you: größer, 猫 🙂\n\ttabs,  two spaces <b>&amp;</b> \x7f".encode()
    tokens = llm.tokenize(text, add_bos=False)

    assert llm.detokenize(tokens) == text
    assert len(tokens) < len(text)  # some pieces are longer than a byte
    assert llm.tokenize(b"it")[0] == BOS
    for byte in range(256):
        assert llm.detokenize(llm.tokenize(bytes([byte]), add_bos=False)) == bytes([byte])


def test_every_piece_is_reachable(llm):
    first = N_VOCAB - len(PIECES)
    for token, piece in enumerate(PIECES, start=first):
        assert llm.tokenize(piece.replace("▁", " ").encode(), add_bos=False) == [token]


def test_chat_template_uses_special_tokens(llm):
    assert llm.token_bos() == BOS and llm.token_eos() == EOS
    assert "<|im_start|>" in llm.metadata["tokenizer.chat_template"]
    assert len(llm.tokenize(b"<|im_start|><|im_end|>", add_bos=False, special=True)) == 2


@pytest.mark.parametrize("architecture", ALL)
def test_seed_decides_the_bytes(architecture, tmp_path):
    def content(name: str, seed: int) -> bytes:
        return write_model(tmp_path / name, architecture, seed=seed, n_layer=1).read_bytes()

    assert content("a.gguf", 5) == content("b.gguf", 5)
    assert content("a.gguf", 5) != content("c.gguf", 6)


@pytest.fixture(scope="module")
def logits_of_one_layer(tmp_path_factory):
    """`logits_of_one_layer(architecture, weight_type)`: of a model of this size, computed once."""
    folder = tmp_path_factory.mktemp("one-layer")

    @functools.cache
    def result(architecture: str, weight_type: str) -> np.ndarray:
        path = write_model(folder / f"{architecture}-{weight_type}", architecture, n_layer=1, weight_type=weight_type)
        with closing(load(path)) as llm:
            return logits(llm, prompt(1))

    return result


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("weight_type", [kind for kind in WEIGHT_TYPES if kind != "F32"])
def test_weight_types_store_the_same_model(architecture, weight_type, logits_of_one_layer):
    expected, actual = logits_of_one_layer(architecture, "F32"), logits_of_one_layer(architecture, weight_type)

    assert not np.array_equal(expected, actual)
    assert np.corrcoef(expected.ravel(), actual.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_head_size_is_free(architecture, tmp_path):
    path = write_model(tmp_path / "wide.gguf", architecture, n_layer=2, head_dim=64, n_embd=128)
    llm = load(path)

    assert llm.n_embd() == 128
    assert llm.metadata[f"{architecture}.attention.key_length"] == "64"
    assert np.isfinite(logits(llm, prompt(1))).all()


def test_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="unknown architecture 'nonesuch'") as caught:
        write_model(tmp_path / "x.gguf", "nonesuch")
    assert all(name in str(caught.value) for name in ALL)
    with pytest.raises(ValueError, match="unknown weight type 'Q9'"):
        write_model(tmp_path / "x.gguf", "llama", weight_type="Q9")
    with pytest.raises(ValueError, match="qwen2 needs n_embd"):
        write_model(tmp_path / "x.gguf", "qwen2", n_embd=64)
    with pytest.raises(ValueError, match="multiple of n_head_kv"):
        write_model(tmp_path / "x.gguf", "llama", n_head_kv=3)
    assert not list(tmp_path.iterdir())
