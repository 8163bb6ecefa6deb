"""Scores of an indexer (sparse attention): against a NumPy twin that starts at the model's weights, and against what is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Replay, record
from asl_gguf.errors import NativeError, OptionError
from asl_gguf.policies import make_policy
from harness import F32, Model, Options
from tiny_kinds import write_kind
from twins import indexer_attention

N_TOKENS, WINDOW, N_KEPT = 100, 24, 40


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_kind(tmp_path_factory.mktemp("indexer") / "sparse.gguf", "sparse", text=True)


@pytest.fixture(scope="module")
def model(path):
    with closing(Model(path)) as loaded:
        yield loaded


def prompt(seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 128, N_TOKENS).tolist()


def of_first_layer(path: Path, tokens: list[int], window: int, weights: np.ndarray | None) -> np.ndarray:
    """float64 [n]: the twin, from the weights of layer 0."""
    reader = gguf.GGUFReader(path)
    tensor = {t.name: np.asarray(t.data, dtype=np.float64) for t in reader.tensors}
    number = {name: field.contents() for name, field in reader.fields.items()}
    prefix = "deepseek32.attention."
    x = tensor["token_embd.weight"][tokens]

    def rms(values: np.ndarray, name: str) -> np.ndarray:
        mean = (values**2).mean(axis=-1, keepdims=True)
        return values / np.sqrt(mean + number[prefix + "layer_norm_rms_epsilon"]) * tensor[f"blk.0.{name}.weight"]

    x = rms(x, "attn_norm")
    low = rms(x @ tensor["blk.0.attn_q_a.weight"].T, "attn_q_a_norm")
    n_head, width = number[prefix + "indexer.head_count"], number[prefix + "indexer.key_length"]
    queries = (low @ tensor["blk.0.indexer.attn_q_b.weight"].T).reshape(-1, n_head, width)
    keys = x @ tensor["blk.0.indexer.attn_k.weight"].T
    keys = (keys - keys.mean(axis=-1, keepdims=True)) / np.sqrt(keys.var(axis=-1, keepdims=True) + 1e-6)
    keys = keys * tensor["blk.0.indexer.k_norm.weight"] + tensor["blk.0.indexer.k_norm.bias"]
    n_rot = number["deepseek32.rope.dimension_count"]
    turned = [rotate(values, n_rot) for values in (queries, keys[:, None])]
    of_heads = x @ tensor["blk.0.indexer.proj.weight"].T
    return indexer_attention(turned[0][-window:], turned[1][:, 0], of_heads[-window:], weights)


def rotate(heads: np.ndarray, n_rot: int) -> np.ndarray:
    """[n, heads, width] at positions 0, 1, ...: the first n_rot elements of a head, each with the one half of them further."""
    half = n_rot // 2
    angles = np.arange(len(heads))[:, None, None] * 10000.0 ** (-np.arange(half) / half)
    a, b = heads[..., :half], heads[..., half:n_rot]
    first, second = a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)
    return np.concatenate([first, second, heads[..., n_rot:]], axis=-1)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_scores_are_the_twins(path, model, flash, weighted):
    weights = np.linspace(0.1, 1, WINDOW, dtype=np.float32) if weighted else None
    expected = of_first_layer(path, prompt(), WINDOW, weights)
    for chunks in (32, 128):
        with model.context(Options(n_ctx=256, n_batch=chunks, n_ubatch=chunks, flash=flash, kv=F32)) as ctx:
            session = ctx.session()
            session.rank_by("indexer")
            session.begin(prompt(), WINDOW)
            session.set_window(WINDOW, weights)
            session.run(1, True)
            scores = session.scores()
            assert scores.shape == (1, N_TOKENS)
            assert np.abs(scores[0] - expected).max() < 1e-4 * expected.max()
            assert scores.sum() == pytest.approx(WINDOW if weights is None else weights.sum(), rel=1e-5)


def test_attention_comes_back(model):
    """The ranking is one of prefills to come; attention's scores are those of before."""
    with model.context(Options(n_ctx=256)) as ctx:
        session, found = ctx.session(), []
        for ranking in ("attention", "indexer", "attention"):
            session.rank_by(ranking)
            session.begin(prompt(), WINDOW)
            session.run(1, True)
            found.append(session.scores())
            session.abort()
        assert np.array_equal(found[0], found[2]) and not np.allclose(found[0], found[1])


def test_scores_of_another_ranking_are_forgotten(model):
    with model.context(Options(n_ctx=256)) as ctx:
        session = ctx.session()
        session.begin(prompt(), WINDOW)
        session.run(1, True)
        session.rank_by("indexer")
        with pytest.raises(NativeError, match="has no scores"):
            session.scores()


def test_the_policy_keeps_what_the_indexer_ranks_best(path, model):
    with model.context(Options(n_ctx=256, kv=F32)) as ctx:
        session = ctx.session()
        report = prefill(session, prompt(), make_policy("indexer:tsp_layer=0:kernel_size=1"), N_KEPT)
        expected = of_first_layer(path, prompt(), 8, None)[: N_TOKENS - 8]
        best = set(np.argsort(-expected)[: N_KEPT - 8].tolist())
        assert set(report.selected) == best | set(range(N_TOKENS - 8, N_TOKENS))
        assert report.policy == "indexer" and report.attention_mass is None


def test_a_record_of_attention_serves_the_indexer_no_scores(model):
    with model.context(Options(n_ctx=256)) as ctx:
        session, policy = ctx.session(), make_policy("indexer:tsp_layer=1")
        expected = prefill(session, prompt(), policy, N_KEPT).selected
        replay = Replay(session, record(session, prompt(), policy.window))
        assert prefill(replay, prompt(), policy, N_KEPT).selected == expected


def test_models_without_an_indexer(load_tiny, tiny_model):
    with load_tiny("llama").context(Options()) as ctx:
        session = ctx.session()
        assert not session.has_indexer
        with pytest.raises(OptionError, match="expected a model whose layers choose tokens with an indexer"):
            session.rank_by("indexer")
    with pytest.raises(OptionError, match="asl_policy: expected a model with an indexer"):
        Llama(str(tiny_model("llama")), n_ctx=256, asl_policy="indexer", asl_budget=0.5, verbose=False)


def test_an_answer_by_the_indexer(path):
    with closing(Llama(str(path), n_ctx=512, asl_policy="indexer", asl_budget=60, verbose=False)) as llm:
        llm.create_completion("the cat and the dog " * 20, max_tokens=4)
        assert llm.last_prefill.pruned and llm.last_prefill.policy == "indexer"
