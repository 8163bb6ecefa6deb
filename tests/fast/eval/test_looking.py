"""The search for what `auto` goes by, on tiny models: it reads what a prompt's budget will read, and is stored only where it
pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.cli import main
from asl_gguf.eval.calibrate import looking
from asl_gguf.eval.calibrate.cutting import Found
from asl_gguf.eval.tasks import PLAIN, make_task
from asl_gguf.models.calibration import cut_of, load, save_cut
from asl_gguf.models.cuts import FoundCut, StoredCut
from asl_gguf.native.model import ContextOptions, Model
from asl_gguf.policies import SpanASL
from asl_gguf.policies.cut import Cut

KINDS = ("niah_noise", "passkey", "multivalue")
DEEP = {"n_layer": 12, "n_head": 4, "n_head_kv": 2, "n_ff": 64}
FOUND = FoundCut(Cut(5, 1, True, 0.5, 0.25), 0.0, 0.2, 0.4, 36)


@pytest.fixture(autouse=True)
def few_kinds(monkeypatch):
    monkeypatch.setattr(looking, "KINDS", KINDS)


@pytest.fixture
def calibrate(config, capsys):
    """`calibrate(path, *arguments)`: exit code, stdout and stderr."""

    def run(path, *arguments: str) -> tuple[int, str, str]:
        given = ["-m", str(path), "-t", "1", "--tokens", "512", "--samples", "1", "--step", "4", "--auto-samples", "1"]
        code = main(["calibrate", *given, "--easy", "passkey", "--hard", "keyvalue", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_it_reads_what_a_budget_reads(kind, tiny_model, config):
    """Peaks of a prompt, head by head, are those that a `Llama` with that head's cut reports."""
    path = str(tiny_model(kind, **DEEP))
    model, policy = Model(path, ContextOptions(1)), SpanASL(tau=2.0)  # random ranks never settle
    task = make_task("passkey", lambda text: len(model.tokenize(text)), 512, 1, 0, PLAIN)
    example = task.get_example(0)
    looker = looking.Looker(model, policy, 512, "off", PLAIN)
    seen = looker._look_at(task, example)
    tokens = model.tokenize(example.prompt)
    model.close()
    n_most = round(seen.most * len(tokens))
    assert seen.kept == (100 / len(tokens), (100 + round((n_most - 100) / 3)) / len(tokens))
    assert seen.most == pytest.approx(0.4, abs=0.01)
    read = np.argwhere(np.isfinite(seen.peaks[:, 0])).ravel()
    assert read.min() >= 3 and read.max() < 12 and seen.peaks.shape == (12, 4)
    for layer, head in [(read[0], 0), (read[-1], 3)]:
        cut = Cut(int(layer), int(head), True, 0.0, looker.scale)
        save_cut(path, "asl-span", StoredCut.of(replace(FOUND, cut=cut), policy, "0"))
        llm = Llama(
            path, n_ctx=1024, n_threads=1, n_threads_batch=1, asl_budget="auto", asl_policy=policy, asl_dequant=False
        )
        assert llm.prefill(tokens).kept_tokens == 100
        assert f"head {head} has {seen.peaks[layer, head]:.1%} of" in llm.last_prefill.budget_choice
        llm.close()


def test_a_random_model_has_none(tiny_model, calibrate, config):
    path = tiny_model("llama", **DEEP)
    save_cut(path, "asl-span", StoredCut.of(FOUND, SpanASL(), "0"))
    code, out, err = calibrate(path)
    assert (
        code == 0
        and "\nauto: nothing stored: the model knows too few of the answers to lose any\n" in out
        and err == ""
    )
    assert load(path, "asl-span") is not None and "stored in" in out
    found = load(path, "asl-span")
    policy = SpanASL(min_layer=found.min_layer, tau=found.tau)
    assert cut_of(policy, path) is None  # what an older search found is gone


def test_what_was_found_is_stored_for_the_layers_that_were_chosen(tiny_model, calibrate, monkeypatch, tmp_path):
    path = tiny_model("llama", **DEEP)
    monkeypatch.setattr(looking.Looker, "find", lambda self, samples, progress: Found(FOUND, "on 36 other prompts"))
    page = tmp_path / "page.html"
    code, out, _ = calibrate(path, "--out", str(page))
    sentence = "auto: few tokens (the least) where head 1 of layer 5 has at least 50.0% of its attention to the document on 8 tokens, "
    assert code == 0 and sentence in out and sentence in page.read_text(encoding="utf-8")
    found = load(path, "asl-span")
    assert cut_of(SpanASL(min_layer=found.min_layer, tau=found.tau), path) == FOUND.cut
    llm = Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, asl_budget="auto")
    llm.prefill(list(range(5, 105)) * 6)
    assert "in layer 5, head 1 has" in llm.last_prefill.budget_choice
    llm.close()


def test_too_few_layers_to_choose_from(tiny_model, calibrate, monkeypatch, config, tmp_path):
    """The model gets what `auto` goes by all the same; without that, the command fails as it did."""
    path = tiny_model("gemma3", n_layer=10)
    code, out, err = calibrate(path)
    assert code == 2 and "3 that attend to the whole prompt" in err and not config.exists()
    assert "auto: nothing stored: " in out
    monkeypatch.setattr(looking.Looker, "find", lambda self, samples, progress: Found(FOUND, "on 36 other prompts"))
    code, out, err = calibrate(path)
    assert code == 0 and "\nlayers: nothing stored: expected a model of at least 10 layers" in out
    assert load(path, "asl-span") is None and cut_of(SpanASL(), path) == FOUND.cut
    page = tmp_path / "page.html"
    code, out, _ = calibrate(path, "--out", str(page))
    assert code == 0 and f"nothing drawn in {page}" in out and not page.exists()
    monkeypatch.setattr(looking.Looker, "find", lambda self, samples, progress: Found(None, "nothing any more"))
    code, _, _ = calibrate(path)
    assert code == 2 and cut_of(SpanASL(), path) is None, "what was found before is gone"


def test_prompts_that_are_too_short(tiny_model, calibrate, monkeypatch):
    monkeypatch.setattr(looking, "KINDS", ("tracking", "records"))
    code, out, _ = calibrate(tiny_model("llama", **DEEP), "--tokens", "320")
    assert code == 0 and "\nauto: nothing stored: not looked for: " in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--auto-samples", "-1"), "--auto-samples: expected a number from 0 on, got -1"),
        (("--chat", "x"), "--chat: expected one of"),
    ],
    ids=["samples", "chat"],
)
def test_bad_options(tiny_model, calibrate, arguments, message):
    code, _, err = calibrate(tiny_model("llama", **DEEP), *arguments)
    assert code == 2 and message in err


@pytest.mark.parametrize("policy, words", [("asl-two-pass", "asl-two-pass does not take it")])
def test_policies_that_do_not_take_it(tiny_model, calibrate, policy, words):
    code, out, _ = calibrate(tiny_model("llama", **DEEP), "--policy", policy)
    assert code == 0 and f"auto: nothing stored: {words}" in out
