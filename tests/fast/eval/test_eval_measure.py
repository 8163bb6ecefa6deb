"""What `asl-gguf eval` measures of an answer: divergence, agreement, perplexity, times, memory; with and without sharing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asl_gguf.errors import OptionError
from asl_gguf.eval.measure import divergence, log_softmax
from asl_gguf.eval.results import TIMES
from asl_gguf.eval.runner import FULL, Plan, Results, read_rows, run
from asl_gguf.native.model import ContextOptions, Model

PLAN = Plan(
    ("passkey",), (600,), (0.1, 0.4), ("asl-span:min_layer=3:obs_layers=2:tau=2:window=8", "streaming_llm"), 1, 0
)


@pytest.fixture(scope="module")
def model(tiny_model):
    model = Model(str(tiny_model("llama")), ContextOptions(n_threads=1))
    yield model
    model.close()


@pytest.fixture(scope="module")
def rows(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures")
    run(model, PLAN, Results(folder))
    return read_rows(folder / "results.jsonl")


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=30))
def test_divergence(pairs):
    full, other = np.array(pairs, dtype=np.float32).T
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum() for x in (full, other))
    assert divergence(full, other) == pytest.approx(float(np.sum(p * np.log(p / q))), abs=1e-9)
    assert divergence(full, full) == 0.0
    assert divergence(full, full + np.float32(3)) == pytest.approx(0.0, abs=1e-5)
    assert np.exp(log_softmax(full)).sum() == pytest.approx(1.0)


def test_large_logits_do_not_overflow():
    assert divergence(np.array([9e4, 0], np.float32), np.array([9e4, 8.9e4], np.float32)) == pytest.approx(0.0)


def test_the_full_cache_agrees_with_itself(rows):
    full, *others = rows
    assert full["policy"] == FULL and full["kl"] == 0.0 and full["top1_agreement"] == 1.0
    assert all(row["kl"] > 0 for row in others) and any(row["top1_agreement"] < 1 for row in others)


def test_times_and_memory(rows):
    full, *others = rows
    assert full["kv_share"] == 1.0 and full["attention_mass"] is None
    for row in rows:
        assert row["kv_bytes"] == pytest.approx(row["kv_share"] * full["kv_bytes"], rel=1e-3)
        assert row["decode_tokens"] > 0 and row["decode_seconds"] > 0
        # layers from the record count as they took there
        assert 0.3 * row["full_seconds"] < row["prefill_seconds"] < 3 * row["full_seconds"]
    assert all(0 < row["attention_mass"] <= 1 for row in others if row["policy"].startswith("asl"))


def test_without_sharing_the_answers_are_the_same(model, rows, tmp_path):
    run(model, PLAN, Results(tmp_path), record_bytes=0)
    alone = read_rows(tmp_path / "results.jsonl")
    assert {row["shared"] for row in rows} == {True} and {row["shared"] for row in alone} == {False}
    apart = TIMES | {"shared"}
    for one, other in zip(alone, rows, strict=True):
        assert {k: v for k, v in one.items() if k not in apart} == {k: v for k, v in other.items() if k not in apart}
        assert one["full_seconds"] is None and one["prefill_seconds"] > 0


def test_full_cache_found_in_the_results_still_serves_as_the_reference(model, rows, tmp_path):
    results = Results(tmp_path)
    results.add(rows[0])
    run(model, PLAN, results)
    assert [row["kl"] for row in results.rows] == [row["kl"] for row in rows]


def test_perplexity_of_a_text(model, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text(" ".join(f"Word {i} of a story." for i in range(900)), encoding="utf-8")
    plan = Plan((f"text:{text}",), (500,), (0.2,), ("streaming_llm",), 2, 0)
    run(model, plan, Results(tmp_path / "out"))
    found = read_rows(tmp_path / "out" / "results.jsonl")
    assert len(found) == 4 and {row["task"] for row in found} == {"text:story.txt"}
    for row in found:
        assert row["completion"] == "" and row["decode_tokens"] == 0
        assert row["score"] == row["token_accuracy"] and row["nll"] > 0 and row["prompt_tokens"] <= 500


def test_another_model_or_setting_is_refused(model, tiny_model, rows, tmp_path):
    results = Results(tmp_path)
    results.add(rows[0])
    with pytest.raises(OptionError, match="expected results with settings .*'dequant': 'off'.*; give another --out"):
        run(model, PLAN, results, dequant="off")
    other = Model(str(tiny_model("qwen2")), ContextOptions(n_threads=1))
    try:
        with pytest.raises(OptionError, match="expected results with model 'qwen2"):
            run(other, PLAN, results)
    finally:
        other.close()
    old = {name: value for name, value in rows[0].items() if name not in ("settings", "kl", "kv_bytes")}
    (tmp_path / "old").mkdir()
    Results(tmp_path / "old").add(old)
    run(model, PLAN, Results(tmp_path / "old"), dequant="off")  # lines of old versions do not say
