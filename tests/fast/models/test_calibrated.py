"""Who takes a stored calibration: `Llama`, `inspect` and `compare` alike, and none of them against what the user wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.cli import main
from asl_gguf.drop_in import options
from asl_gguf.eval.calibrate import picture
from asl_gguf.models.calibration import calibrated, save
from asl_gguf.policies import SpanASL
from harness import prompt
from profiles import make_calibration
from tiny_llama import TEXT, complete

MIN_LAYER = 8
STORED = make_calibration(min_layer=MIN_LAYER, tau=2.0)  # a tau above 1 selects at min_layer, whatever the scores
SUMMARY = "min_layer 8, tau 2, from asl-gguf calibrate with tradeoff 0.3"


@pytest.fixture
def model(tiny_model, config) -> str:
    """A model of 12 layers for which a calibration of asl-span is stored."""
    path = str(tiny_model("llama", n_layer=12, n_head=2, n_head_kv=1, n_ff=64))
    save(path, STORED)
    return path


@pytest.mark.parametrize(
    "written, policy",
    [
        ("asl-span:tau=3.0", SpanASL(tau=3.0)),
        ("asl-span:min_layer=10", SpanASL(min_layer=10)),
        ("asl-span:min_depth=0.8", SpanASL(min_depth=0.8)),
        ("asl-span:tau=0.9", SpanASL()),  # the default, but written out
    ],
)
def test_what_is_written_out_stands(model, written, policy):
    assert calibrated(written, model) == (policy, None)


@pytest.mark.parametrize(
    "options, layer, summary",
    [
        ({}, MIN_LAYER, SUMMARY),
        ({"asl_policy": "asl-span"}, MIN_LAYER, SUMMARY),
        ({"asl_policy": "asl-span:min_layer=10:tau=2.0"}, 10, None),
        ({"asl_policy": SpanASL(min_layer=9, tau=2.0)}, 9, None),
        ({"asl_policy": "asl-span:min_depth=0.75:tau=2.0"}, 9, None),
        ({"asl_policy": "asl-span:tau=0.0"}, None, None),
        ({"asl_calibration": False, "asl_policy": "asl-span:tau=2.0"}, 7, None),
    ],
    ids=str,
)
def test_llama(model, options, layer, summary):
    llm = Llama(model, n_ctx=512, n_threads=1, n_threads_batch=1, asl_budget=0.3, **options)
    complete(llm, prompt(300), 1)
    llm.close()
    assert (llm.last_prefill.selection_layer, llm.last_prefill.calibration) == (layer, summary)


@pytest.fixture
def run(model, tmp_path, capsys):
    """`run(command, *arguments)`: what `asl-gguf COMMAND` prints about the test's text."""
    document = tmp_path / "document.txt"
    document.write_text(TEXT, encoding="utf-8")

    def run(command: str, *arguments: Any) -> str:
        assert main([command, "-m", model, "-t", "1", "-n", "2", "--prompt-file", str(document), *arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("how", [[], ["--measure"]], ids=["replayed", "measured"])
def test_compare(run, how):
    policies = "none,asl-span,asl-span:min_layer=10:tau=2.0,snapkv"
    found = json.loads(run("compare", "--policies", policies, "--json", *how))["answers"]
    assert [answer["calibration"] for answer in found] == [None, SUMMARY, None, None]
    assert [answer["selection_layer"] for answer in found] == [None, MIN_LAYER, 10, None]
    assert f"\nasl-span: {SUMMARY}\n" in run("compare", "--policies", policies, *how) + "\n"


@pytest.mark.parametrize(
    "policy, layer, shown", [("asl-span", MIN_LAYER, True), ("asl-span:min_layer=10:tau=2.0", 10, False)]
)
def test_inspect(run, tmp_path: Path, policy, layer, shown):
    page = tmp_path / "page.html"
    out = run("inspect", "-o", str(page), "--policy", policy)
    text = page.read_text(encoding="utf-8")
    assert (f"calibration: {SUMMARY}\n" in out, f"<dd>{SUMMARY}</dd>" in text) == (shown, shown)
    assert f"<dd>{layer} of layers 0 to 11<small>" in text and f"min_layer={layer}, " in text


@pytest.mark.parametrize("kind", [["saved"], ["turns", "--turns", "1"]], ids=lambda kind: kind[0])
def test_bench_measures_the_policy_as_it_is(model, monkeypatch, capsys, kind):
    found = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        found.append(calibrated(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(options, "calibrated", recorded)
    assert main(["bench", *kind, "-m", model, "-t", "1", "--tokens", "300", "--runs", "1"]) == 0
    assert found and set(found) == {(SpanASL(), None)}


def test_a_model_with_too_few_full_layers_has_none(tiny_model, config, capsys):
    """Where only two full layers are deep enough, there is nothing to choose."""
    path = tiny_model("gemma3", n_layer=10)
    assert main(["calibrate", "-m", str(path), "--tokens", "512", "--samples", "1"]) == 2
    message = capsys.readouterr().err
    assert "3 that attend to the whole prompt from layer 7 on, got one of 10 where (1, 3, 5, 7, 9) do" in message
    assert not config.exists()


@pytest.mark.parametrize("kind, drawn", [("first", [2, 2, 2]), ("peak", [2, 6, 6]), ("random", [800, 800, 800])])
def test_thresholds_of_the_picture(kind, drawn):
    found = replace(STORED, settings=STORED.settings | {"variance_reference": kind})
    assert found.tau == 2 and picture._thresholds(found, [1, 3, 2]) == drawn
