"""`asl-gguf calibrate` on a real model whose thresholds are not known (SmolLM2's own are taken away): what it stores, `auto` goes
by, and what it stores has passed the check on held-out prompts."""

from __future__ import annotations

import re

import pytest

from asl_gguf import Llama
from asl_gguf.budget import late
from asl_gguf.cli import main
from asl_gguf.eval.calibrate import looking
from asl_gguf.eval.calibrate.cutting import MOST_KEPT, TOLERANCE
from asl_gguf.eval.demo_text import make_document
from asl_gguf.models.calibration import cut_of, load
from asl_gguf.policies import SpanASL

KINDS = ("niah_noise", "niah_prose", "passkey", "rule", "multivalue", "tracking", "topics")


def test_a_model_without_known_thresholds(smollm2, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ASL_GGUF_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(late, "CALIBRATED", {})
    monkeypatch.setattr("asl_gguf.cli.calibrate.CALIBRATED", {})
    monkeypatch.setattr(looking, "KINDS", KINDS)
    layers = ["--samples", "1", "--step", "8", "--easy", "passkey", "--hard", "keyvalue"]
    assert main(["calibrate", "-m", str(smollm2), "-t", "2", *layers, "--auto-samples", "2"]) == 0
    out = capsys.readouterr().out
    sentence = re.search(r"\nauto: .*", out)[0]
    found = load(smollm2, "asl-span")
    policy = SpanASL(min_layer=found.min_layer, tau=found.tau)
    cut = cut_of(policy, smollm2)
    llm = Llama(str(smollm2), n_ctx=1536, n_threads=2, n_threads_batch=2, asl_budget="auto")
    text = make_document(lambda text: len(llm.tokenize(text.encode())), 1000).text
    tokens = llm.tokenize(text.encode())
    report = llm.prefill(tokens)
    if cut is None:
        assert "nothing stored" in sentence and "no thresholds are known" in report.budget_choice
        pytest.skip(f"nothing was found: {sentence}")
    kept, limit, loss = re.search(
        r"keeps ([\d.]+) of a prompt in place of ([\d.]+), .* change by ([+-][\d.]+)", sentence
    ).groups()
    assert float(loss) <= TOLERANCE and float(kept) <= MOST_KEPT * float(limit)
    assert f"in layer {cut.layer}, head {cut.head} has " in report.budget_choice
    assert report.kept_tokens < len(tokens)
    llm.close()
