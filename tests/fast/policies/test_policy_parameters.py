"""What policies are made of: names, the papers' parameters, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from asl_gguf.errors import AslError, OptionError
from asl_gguf.policies import (
    ASL,
    DEFAULT,
    REGISTRY,
    FastKV,
    Full,
    GemFilter,
    Policy,
    PyramidInfer,
    SnapKV,
    SpanASL,
    SpecPrefill,
    StreamingLLM,
    TwoPassASL,
    make_policy,
    parse_policy,
)
from asl_gguf.policies.contract import Prompt


def test_published_parameters_of_asl():
    policy = make_policy("asl")
    assert (policy.window, policy.kernel_size, policy.obs_layers, policy.tau) == (32, 7, 8, 0.3)
    assert (policy.min_layer, policy.min_depth, policy.obs_tokens) == (None, 10 / 32, None)
    assert (policy.n_sink, policy.normalise_heads, policy.span_forward, policy.span_back) == (0, False, 0, 0)
    assert policy.variance_reference == "first" and policy.min_kept == 33 and policy.cache_k == "select_k"
    assert (policy.half_life, policy.evidence_layers, policy.back_share_of(50)) == (None, 1, 1)
    assert make_policy("asl-two-pass") == TwoPassASL() and TwoPassASL().two_pass and not policy.two_pass


def test_published_parameters_of_the_others():
    assert (SnapKV().window, SnapKV().kernel_size) == (32, 5)
    assert (FastKV().window, FastKV().kernel_size, FastKV().tsp_depth) == (8, 7, 15 / 32)
    assert (GemFilter().window, GemFilter().kernel_size, GemFilter().select_depth) == (1, 5, 13 / 32)
    spec = SpecPrefill()
    assert (spec.window, spec.kernel_size, spec.chunk_size, spec.select_depth) == (8, 13, 32, 0.6)
    assert (StreamingLLM().n_sink, StreamingLLM().min_kept) == (4, 5)
    pyramid = PyramidInfer()
    assert (pyramid.recent_ratio, pyramid.recent_weight, pyramid.min_context, pyramid.decay) == (0.2, 1.2, 64, None)
    for policy in (SnapKV(), FastKV()):
        assert (policy.n_sink, policy.normalise_heads, policy.span_forward, policy.span_back) == (0, False, 0, 0)
        assert policy.half_life is None and getattr(policy, "evidence_layers", 1) == 1


def test_the_default():
    assert DEFAULT == "asl-span" and make_policy(DEFAULT) == SpanASL() and next(iter(REGISTRY)) == DEFAULT
    policy = SpanASL()
    assert (policy.n_sink, policy.normalise_heads, policy.span_forward, policy.span_back) == (4, True, 10, 6)
    assert (policy.half_life, policy.evidence_layers) == (8, 3)
    assert policy.n_question == 48 and ASL().n_question == 0
    # of 200 tokens and more all of a score reaches back, of fewer a share that falls with the square
    assert [policy.back_share_of(n) for n in (50, 100, 199, 200, 10_000)] == [0.0625, 0.25, 0.990025, 1, 1]
    assert (policy.min_depth, policy.obs_tokens, policy.tau, policy.variance_reference) == (0.56, 64, 0.9, "peak")
    assert (policy.window, policy.kernel_size, policy.obs_layers, policy.min_kept) == (32, 7, 8, 17)


@pytest.mark.parametrize("name", REGISTRY)
def test_registry(name):
    policy = make_policy(name)
    assert isinstance(policy, Policy) and make_policy(policy) is policy
    assert policy.min_kept > policy.window_of(policy.min_kept, policy.min_kept)
    with pytest.raises(FrozenInstanceError):
        policy.window = 3


@pytest.mark.parametrize("unknown", ["", "ASL", "snap-kv", None, 3, SnapKV, ["asl"]])
def test_unknown_policy(unknown):
    with pytest.raises(OptionError, match=r"policy: expected one of asl-span, asl, .* or a Policy object, got"):
        make_policy(unknown)


BAD_PARAMETERS = [
    (Full, {"window": 0}),
    (SnapKV, {"window": -1}),
    *[(SnapKV, {"kernel_size": value}) for value in (0, -1, 2, 6)],
    *[(SnapKV, {name: -1}) for name in ("n_sink", "span_forward", "span_back")],
    *[(SnapKV, {"back_room": value}) for value in (-1, 0.5, None, True)],
    *[(ASL, {name: -1}) for name in ("window", "kernel_size", "n_sink", "obs_layers", "tau")],
    *[(ASL, {"min_depth": value}) for value in (-0.1, 1, 1.5)],
    *[(ASL, {"obs_tokens": value}) for value in (-1, 0)],
    *[(ASL, {"tau": value}) for value in (-0.3, float("nan"), float("inf"), "0.3", True)],
    (ASL, {"obs_layers": 1}),
    (ASL, {"variance_reference": "last"}),
    (ASL, {"variance_reference": None}),
    *[(ASL, {"min_layer": value}) for value in (-1, 0, 6)],
    (ASL, {"min_layer": 2, "obs_layers": 4}),
    *[(SpanASL, {"cache_k": value}) for value in (17, 36)],  # less than the largest window takes
    *[(kind, {"cache_k": value}) for kind in (ASL, FastKV) for value in (0, 8, "some", None, 40.0, True)],
    *[(SnapKV, {"half_life": value}) for value in (0, -1, float("nan"), "8", True)],
    *[(ASL, {"evidence_layers": value}) for value in (0, 1.5, None)],
    *[(FastKV, {"tsp_layer": value}) for value in (-1, 1.5, "3")],
    *[(FastKV, {"tsp_depth": value}) for value in (-0.1, 1, True)],
    *[(GemFilter, {"kernel_size": value}) for value in (0, 4)],
    *[(GemFilter, {"select_layer": value}) for value in (-1, 2.0)],
    *[(GemFilter, {"select_depth": value}) for value in (-0.1, 1)],
    *[(SpecPrefill, {"kernel_size": value}) for value in (0, 4)],
    *[(SpecPrefill, {"chunk_size": value}) for value in (0, 1.5)],
    *[(SpecPrefill, {"select_layer": value}) for value in (-1, 2.0)],
    *[(SpecPrefill, {"select_depth": value}) for value in (-0.1, 1)],
    *[(ASL, {"n_question": value}) for value in (-1, 0.5, None)],
    (StreamingLLM, {"n_sink": -1}),
    *[(PyramidInfer, {"recent_ratio": value}) for value in (-0.1, 1)],
    *[(PyramidInfer, {"recent_weight": value}) for value in (0, -1, "1", float("nan"), float("inf"))],
    *[(PyramidInfer, {"decay": value}) for value in (-0.1, 1.1, "0.9")],
    (PyramidInfer, {"min_context": 0}),
    (PyramidInfer, {"n_sink": -1}),
]


@pytest.mark.parametrize("kind, parameters", BAD_PARAMETERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_parameters(kind, parameters):
    with pytest.raises(OptionError, match=f"^({'|'.join(parameters)}): expected .*, got ") as caught:
        kind(**parameters)
    assert isinstance(caught.value, AslError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "policy", [ASL(min_layer=9), FastKV(tsp_layer=9), GemFilter(select_layer=9), SpecPrefill(select_layer=9)], ids=repr
)
def test_layers_that_the_model_does_not_have(policy):
    """A selection there would never come, or come elsewhere than asked for."""
    policy.start(Prompt(100, 50, 10))
    with pytest.raises(OptionError, match=r"_layer: expected a layer up to 8 of this model, got 9"):
        policy.start(Prompt(100, 50, 9))
    with pytest.raises(OptionError, match=r"expected a layer up to 8 of this model \(deeper ones attend to a slid"):
        policy.start(Prompt(100, 50, 10, full_layers=(2, 5, 8)))


@pytest.mark.parametrize("n_sink", [0, 4, 98, 99, 150])
def test_the_fewest_tokens_leave_room_beside_sinks_and_window(n_sink):
    policy = SpanASL(n_sink=n_sink)
    for n_kept in (policy.min_kept, policy.min_kept + 1, policy.min_kept + 100):
        assert n_sink + policy.window_of(1000, n_kept) < n_kept
    assert SpanASL().window_of(1000, 200) == 25 and SpanASL().window_of(1000, 1000) == 32


@pytest.mark.parametrize(
    "text, message",
    [
        ("asl:tau={[]}", "tau: expected a number of at least 0, got '{\\[\\]}'"),
        ("asl:tau=1e999", "tau: expected a number of at least 0, got inf"),
        ("asl:tau=0.1:tau=0.2", "policy asl: expected parameter=value .* each at most once, got 'tau=0.2'"),
        ("asl:" + "tau=" + "(" * 500, "tau: expected a number of at least 0, got .*"),
    ],
    ids=["unhashable", "infinite", "twice", "deep"],
)
def test_bad_values_in_a_name(text, message):
    with pytest.raises(OptionError, match=f"^{message}"):
        parse_policy(text)


def test_pyramidinfer_keeps_its_budget_where_some_layers_slide():
    """The mean over the layers that it is asked about."""
    for full_layers in ((5, 11, 17), tuple(range(1, 24, 2))):
        prompt = Prompt(2048, 409, 24, full_layers=full_layers)
        counts = PyramidInfer().schedule(prompt)
        rows = [counts[layer] for layer in full_layers]
        assert 0.95 * 409 < sum(rows) / len(rows) <= 409


def test_cells_of_a_second_pass():
    """It keeps all of its tokens, whatever cache_k says of the first one."""
    assert [kind(cache_k=40).max_rows(2000, 400) for kind in (ASL, TwoPassASL)] == [40, 400]
    assert TwoPassASL(cache_k="all").max_rows(2000, 400) == 2000


def test_first_layer_that_may_select():
    layers = [ASL(min_layer=9, variance_reference=kind).first_selection(30) for kind in ("first", "peak", "random")]
    assert layers == [10, 10, 9] and ASL(min_layer=9, tau=2).first_selection(30) == 9
