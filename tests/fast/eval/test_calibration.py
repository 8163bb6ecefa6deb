"""Calibration: the choice on made-up profiles, and the command on a tiny model."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import fields, replace

import numpy as np
import pytest

from asl_gguf.cli import main
from asl_gguf.errors import OptionError
from asl_gguf.eval.calibrate.tradeoff import TAUS, Outcome, choose, means, selection_layers
from asl_gguf.models.calibration import load
from asl_gguf.native.session import sliding_layers
from asl_gguf.native.vocabulary import load_model
from asl_gguf.policies import ASL, FastKV, SelectingPolicy, SpanASL
from asl_gguf.policies.contract import LayerScores, Prompt
from asl_gguf.policies.ranking import random_rank_variance
from harness import llama_cpp, prompt  # noqa: F401  (silences llama.cpp's log in this process)
from profiles import FIRST, N_LAYER, both, made_up
from tiny_kinds import write_kind

N_UNLIKE = 12
"""layers of models in which not all are asked"""
TRADEOFFS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)


@pytest.mark.parametrize("reference", ["peak", "first", "random"])
@pytest.mark.parametrize("cliff", [12, 18, 29])
def test_the_most_accurate_choice_is_never_before_a_cliff(cliff, reference):
    profiles = both(cliffs=(cliff, cliff), falls=(11, 17))
    choice = choose(profiles, 0.0, reference)
    layers = [profile.selected(choice.min_layer, choice.tau, reference).layer for profile in profiles]
    assert min(layers) >= cliff and choice.means.quality_loss == 0


@pytest.mark.parametrize("reference", ["peak", "first", "random"])
def test_the_fastest_choice_is_the_earliest(reference):
    profiles = both(cliffs=(20, 25), falls=(11, 17))
    shares = [
        means(profiles, [p.selected(min_layer, tau, reference) for p in profiles]).prefill_share
        for min_layer in range(FIRST, N_LAYER - 2)
        for tau in TAUS[::3]
    ]
    choice = choose(profiles, 1.0, reference)
    assert choice.means.prefill_share <= min(shares)
    assert reference != "random" or choice.min_layer > FIRST  # which may select there, where nothing was measured


def test_monotone_in_the_tradeoff():
    chosen = [choose(both(cliffs=(9, 14), falls=(11, 17), slope=0.02), t, "peak").means for t in TRADEOFFS]
    shares = [mean.prefill_share for mean in chosen]
    losses = [mean.quality_loss for mean in chosen]
    assert shares == sorted(shares, reverse=True) and losses == sorted(losses)
    assert shares[0] > shares[-1] and losses[0] < losses[-1]


@pytest.mark.parametrize("tradeoff", [0.0, 0.3])
def test_easy_prompts_select_earlier_where_the_traces_allow(tradeoff):
    chosen = choose(both(cliffs=(11, 17), falls=(11, 17)), tradeoff, "peak")
    assert (chosen.means.layer_easy, chosen.means.layer_hard) == (11.5, 17.5)
    assert chosen.means.quality_loss == 0
    assert 0.2 < chosen.tau < 0.9  # not at the edge of what does the same


def test_an_early_layer_that_is_right_by_luck_does_not_count():
    profiles = both(cliffs=(18, 18), falls=(12, 17))
    lucky = [
        replace(p, measured=tuple(replace(o, nll=0.1) if o.layer in (12, 13) else o for o in p.measured))
        for p in profiles
    ]
    assert choose(lucky, 0.0, "peak") == choose(profiles, 0.0, "peak")


def test_answers_between_measured_layers_are_interpolated():
    profile = made_up(hard=False, fall=12, cliff=FIRST, slope=0.1, step=4)
    for layer in range(FIRST + 1, N_LAYER):
        assert profile.at(layer).nll == pytest.approx(0.1 + 0.1 * (N_LAYER - 1 - layer))
        assert profile.at(layer).share == pytest.approx((layer + 1) / N_LAYER)


def test_an_answer_better_than_the_full_cache_earns_nothing():
    profile = made_up(hard=False, fall=12, cliff=12)
    assert profile.quality_loss(Outcome(12, 0.05, 0.5)) == 0
    assert profile.quality_loss(Outcome(12, 2.0, 0.5)) == pytest.approx(math.exp(-0.1) - math.exp(-2.0))


@pytest.mark.parametrize("arguments", [([], 0.3), (both(cliffs=(9, 9), falls=(11, 17)), 1.5)], ids=["none", "tradeoff"])
def test_wrong_choice(arguments):
    with pytest.raises(OptionError, match="expected .*, got "):
        choose(*arguments, "peak")


def scores_of(seed: int, n_layer: int, n_tokens: int = 200) -> list[LayerScores]:
    rng = np.random.default_rng(seed)
    drift = rng.random((2, n_tokens))
    return [
        LayerScores(layer, (drift + rng.random((2, n_tokens)) / (layer + 1)).astype(np.float32), 32)
        for layer in range(n_layer)
    ]


def first_cut(policy: ASL | FastKV, scores: list[LayerScores]) -> tuple[int | None, list[int]]:
    observe = policy.start(Prompt(scores[0].n_current, 60, len(scores)))
    for layer in scores:
        if (decision := observe(layer)).tokens is not None:
            return layer.layer, decision.tokens.tolist()
    return None, []


@pytest.mark.parametrize("reference", ["peak", "first", "random"])
def test_the_rule_is_the_policys_own(reference):
    policy = SpanASL(variance_reference=reference)
    layers = []
    for seed in range(2):
        scores = scores_of(seed, 16)
        watch = replace(policy, tau=0.0, min_layer=FIRST).start(Prompt(200, 60, 16))
        variance = [v for layer in scores if (v := watch(layer).variance) is not None]
        assert len(variance) == 16 - FIRST
        taus = (0.001, 0.01, 0.02, 0.05) if reference == "random" else (0.2, 0.6, 0.9, 0.99, 1.0)
        for min_layer in (7, 12):
            cuts = [first_cut(replace(policy, tau=tau, min_layer=min_layer), scores)[0] for tau in taus]
            expected = [15 if cut is None else cut for cut in cuts]
            compared = random_rank_variance(200 - 32 - 4) if reference == "random" else reference
            assert selection_layers(variance, FIRST, min_layer, taus, compared).tolist() == expected
            layers += expected
    assert 15 in layers and len(set(layers)) > 3


def test_a_tau_above_one_is_a_fixed_layer():
    scoring = {field.name: getattr(SpanASL(), field.name) for field in fields(SelectingPolicy)}
    for layer in (8, 11):
        fixed = first_cut(FastKV(tsp_layer=layer, **scoring), scores_of(0, 16))
        assert first_cut(SpanASL(min_layer=layer, tau=2.0), scores_of(0, 16)) == fixed
        assert fixed[0] == layer


# The command


@pytest.fixture
def command(tiny_model, config, capsys):
    """`command(*arguments)`: exit code, stdout and stderr of `asl-gguf calibrate` on a model of 12 layers."""
    path = tiny_model("llama", n_layer=12, n_head=2, n_head_kv=1, n_ff=64)

    def run(*arguments: str) -> tuple[int, str, str]:
        given = ["-m", str(path), "-t", "1", "--tokens", "512", "--samples", "1", "--auto-samples", "0", *arguments]
        code = main(["calibrate", *given, "--easy", "passkey", "--hard", "keyvalue"])
        return code, *capsys.readouterr()

    run.model = path
    return run


def test_what_is_foreseen_happens(command):
    """A profile knows what the policy will do with other parameters: the same layer, answer and share."""
    from asl_gguf.eval.calibrate.profiling import make_cases, profile
    from asl_gguf.native.model import ContextOptions, Model

    model = Model(str(command.model), ContextOptions(1))
    cases = make_cases(model, 400, 1, ["passkey"], ["keyvalue"])
    profiles = profile(model, SpanASL(), cases)
    layers = set()
    for min_layer, tau in ((7, 1.0), (9, 0.99)):
        real = profile(model, SpanASL(min_layer=min_layer, tau=tau), cases, step=4)
        foreseen = [p.selected(min_layer, tau, "peak") for p in profiles]
        assert foreseen == [p.before for p in real]
        layers |= {outcome.layer for outcome in foreseen}
    assert min(layers) < 11
    model.close()


def test_the_command(command, config, tmp_path):
    code, out, err = command("--out", str(tmp_path / "profile.svg"), "--tradeoff", "0.8", "--budget", "64")
    assert code == 0 and "--budget 64 keeps 64 tokens" in err and err.count("\n") == 1
    found = load(command.model, "asl-span")
    assert (found.tradeoff, found.budget, found.tokens, found.samples) == (0.8, 64, 512, 1)
    assert found.profile.layers == (8, 9, 10, 11) and len(found.profile.variance_easy) == 12 - 7
    shares = found.profile.prefill_share
    assert list(shares) == sorted(shares) and shares[-1] == 1 and 0.7 < shares[0] < 0.8
    for text in (f"min_layer +\\d+ +{found.min_layer}\n", "easy +11.0 +\\d", "prefill share +1.00 +[01]", "stored in "):
        assert re.search(text, out), (text, out)
    entry = json.loads(next(config.iterdir()).read_text())["calibrations"]["asl-span"]
    assert entry["min_layer"] == found.min_layer
    drawn = ElementTree.parse(tmp_path / "profile.svg").getroot()
    words = " ".join(drawn.itertext())
    assert f"min_layer {found.min_layer}" in words and "squared ranks" in words and "nats/token" in words
    assert len(drawn.findall("{*}circle")) == len(drawn.findall("{*}rect")) - 1 == 5 + 4 + 1


def test_a_page(command, tmp_path):
    code, out, err = command("--out", str(tmp_path / "profile.html"), "--step", "3", "--dry-run")
    text = (tmp_path / "profile.html").read_text(encoding="utf-8")
    assert (code, err) == (0, "") and "drawn in" in out
    assert (
        "http" not in text.replace("http-equiv", "") and "<script" not in text and "prefers-color-scheme: dark" in text
    )
    for said in (
        "Calibration of asl-span on",
        "data:image/svg+xml;base64,",
        "calibrated",
        "rank variance",
        "min_layer",
    ):
        assert said in text
    assert text.count("<tr>") > 2 + 7  # two heads, what was chosen, and layers
    code, _, err = command("--out", str(tmp_path / "profile.png"))
    assert code == 2 and err.startswith("asl-gguf: --out: expected a file that ends in .html or .svg")
    (tmp_path / "folder.html").mkdir()  # said before minutes of measuring
    code, out, err = command("--out", str(tmp_path / "folder.html"))
    assert (code, out) == (2, "") and err.startswith("asl-gguf: --out: expected a file in a folder that exists, got ")


def test_a_dry_run_stores_nothing(command, config):
    code, out, _ = command("--dry-run", "--policy", "asl", "--step", "3")
    assert code == 0 and "stored in" not in out and "calibrated" in out
    assert not config.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--policy", "snapkv"], "--policy: expected asl-span, asl or asl-two-pass.*, got 'snapkv'"),
        (["--policy", "x"], "policy: expected one of asl-span, .*, got 'x'"),
        (["--budget", "none"], "--budget: expected .*, got none .*"),
        (["--budget", "1.0"], "budget: expected less than the prompt of .*, got 1.0"),
        (["--tradeoff", "2"], r"--tradeoff: expected a share in \[0, 1\], got 2.0"),
        (["--samples", "0"], "--samples: expected at least 1, got 0"),
        (["--tokens", "50"], "expected n_tokens to hold .*, got 50.*"),
        (["--step", "0"], "--step: expected at least 1, got 0"),
        (["--out", "missing/profile.svg"], "--out: expected .*, got missing/profile.svg"),
    ],
    ids=str,
)
def test_wrong_use(command, arguments, message):
    code, _, err = command(*arguments)
    assert code == 2 and re.fullmatch(f"asl-gguf: {message}\n", err), err


def test_a_shallow_model(tiny_model, config, capsys):
    assert main(["calibrate", "-m", str(tiny_model("llama")), "--tokens", "512", "--samples", "1"]) == 2
    assert "expected a model of at least 10 layers" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("policy", ["asl-span", "asl"])
@pytest.mark.parametrize("kind", ["sliding", "delta-net", "mamba"])
def test_models_whose_layers_are_not_alike(kind, policy, tiny_model, tmp_path, config, capsys):
    """Layers that slide or hold a state are not asked: a full one is chosen, and the policy selects where it is predicted to."""
    if kind == "sliding":
        path = tiny_model("gemma3", n_layer=N_UNLIKE)
    else:
        path = write_kind(tmp_path / "model.gguf", kind, n_layer=N_UNLIKE, text=True)
    arguments = ["calibrate", "-m", str(path), "--policy", policy, "--tokens", "320", "--samples", "1", "-t", "1"]
    arguments += ["--auto-samples", "0"]
    arguments += ["--easy", "passkey", "--hard", "keyvalue", "--out", str(tmp_path / "profile.svg")]
    assert main(arguments) == 0, capsys.readouterr().err
    found = load(path, policy)
    model = load_model(str(path))
    asked = [layer for layer, itself in enumerate(sliding_layers(model)) if not itself]
    llama_cpp.llama_model_free(model)
    assert 0 < len(asked) < N_UNLIKE and found.min_layer in asked and set(found.profile.layers) <= set(asked)
    assert found.profile.observed == tuple(asked[1:]) and len(found.profile.variance_easy) == len(asked) - 1
    assert "stored in" in capsys.readouterr().out and ElementTree.parse(tmp_path / "profile.svg")


@pytest.mark.long
@pytest.mark.parametrize("reference", ["peak", "first", "random"])
def test_the_rule_on_few_layers_is_the_policys(tiny_model, config, reference):
    """What profiles predict of each min_layer and tau is what the policy does with them."""
    from asl_gguf.budget.share import Budget
    from asl_gguf.engine.prefill import prefill
    from asl_gguf.engine.replay import Replay, record
    from asl_gguf.eval.calibrate.profiling import make_cases, profile
    from asl_gguf.native.model import ContextOptions, Model

    policy = SpanASL(variance_reference=reference)
    model = Model(str(tiny_model("gemma3", n_layer=20)), ContextOptions(n_threads=1))
    try:
        cases = make_cases(model, 320, 1, ("passkey",), ("keyvalue",))
        for case, found in zip(cases, profile(model, policy, cases, dequant="off"), strict=True):
            tokens = model.tokenize(case.example.prompt)
            n_kept = Budget(0.1, 0).kept(len(tokens), policy.min_kept)
            window = policy.window_of(len(tokens), n_kept)
            with model.context(1024) as ctx, model.session(ctx, 1024, 1024, "off") as session:
                replay = Replay(session, record(session, tokens, window, policy.weights_of(window)))
                for place in range(found.first_min_layer, found.n_layer - 1):
                    for tau in (0.3, 0.8, 0.95, 1.0):
                        used = replace(policy, min_layer=found.asked[place], tau=tau)
                        layer = prefill(replay, tokens, used, n_kept).selection_layer
                        expected = found.of_model(found.selected(place, tau, reference).layer)
                        assert layer == expected or (layer is None and expected == found.asked[-1])
    finally:
        model.close()
