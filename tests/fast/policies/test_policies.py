"""Laws that every choice of a policy obeys, on random attention. NumPy alone: no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asl_gguf.policies import ASL, Full, Policy, ScoringPolicy, SnapKV, TwoPassASL, make_policy, ranking
from asl_gguf.policies.contract import Decision, LayerScores, Prompt

PLAIN = {"kernel_size": 1, "span_forward": 0, "span_back": 0}


@dataclass(frozen=True)
class Case:
    """A prompt, and the attention of its window in every layer."""

    policy: ScoringPolicy
    prompt: Prompt
    attention: list[np.ndarray]
    """per layer: float32 [n_head_kv, n_tokens]"""

    def scores(self, layer: int, heads: slice | list[int] = slice(None)) -> LayerScores:
        return LayerScores(layer, self.attention[layer][heads], self.policy.window)

    def decide(self, policy: Policy | None = None, heads: slice | list[int] = slice(None)) -> list[Decision]:
        """The decision at every layer, as if no tokens were ever dropped."""
        observe = (policy or self.policy).start(self.prompt)
        return [observe(self.scores(layer, heads)) for layer in range(self.prompt.n_layer)]

    def with_policy(self, **changes: object) -> Case:
        return replace(self, policy=replace(self.policy, **changes))


HEADS = st.integers(1, 4)


@st.composite
def cases(draw: Callable, kinds: tuple = (SnapKV, ASL), n_head_kv: st.SearchStrategy = HEADS) -> Case:
    """Half of them with attention of few distinct values, so that ties are common."""
    scoring = {
        "window": draw(st.integers(1, 6)),
        "kernel_size": draw(st.sampled_from([1, 3, 7])),
        "n_sink": draw(st.integers(0, 4)),
        "normalise_heads": draw(st.booleans()),
        "span_forward": draw(st.integers(0, 5)),
        "span_back": draw(st.integers(0, 3)),
    }
    kind = draw(st.sampled_from(kinds))
    if kind is ASL:
        obs_layers = draw(st.integers(2, 4))
        scoring |= {"obs_layers": obs_layers, "min_layer": draw(st.one_of(st.none(), st.integers(obs_layers - 1, 4)))}
        scoring |= {"min_depth": draw(st.floats(0, 0.9)), "obs_tokens": draw(st.one_of(st.none(), st.integers(1, 50)))}
        scoring |= {
            "tau": draw(st.floats(0, 1)),
            "variance_reference": draw(st.sampled_from(["peak", "first", "random"])),
        }
    policy = kind(**scoring)
    n_tokens = draw(st.integers(policy.min_kept + 1, policy.min_kept + 40))
    n_layer = draw(st.integers(max(2, 1 + (scoring.get("min_layer") or 0)), 8))
    prompt = Prompt(n_tokens, draw(st.integers(policy.min_kept, n_tokens - 1)), n_layer=n_layer)
    rng, n_heads, tied = np.random.default_rng(draw(st.integers(0, 2**32))), draw(n_head_kv), draw(st.booleans())
    shape = (prompt.n_layer, n_heads, n_tokens)
    attention = rng.integers(0, 4, shape) if tied else rng.exponential(size=shape) ** 3
    return Case(policy, prompt, list(attention.astype(np.float32)))


def lists(indices: np.ndarray | None) -> list[list[int]]:
    """An index array as lists, one a KV head or one for all; no array, no lists."""
    return [] if indices is None else np.atleast_2d(indices).tolist()


@given(cases())
def test_every_choice_keeps_the_contract(case):
    """The budget exactly, in order and without duplicates, with the sinks and the window."""
    policy, prompt = case.policy, case.prompt
    fixed = {*range(policy.n_sink), *range(prompt.n_tokens - policy.window, prompt.n_tokens)}
    for layer, decision in enumerate(case.decide()):
        assert decision.rows.shape == (len(case.attention[layer]), prompt.n_kept)
        assert decision.rows.dtype == np.int32
        if decision.tokens is not None:
            assert decision.tokens.shape == (prompt.n_kept,) and decision.tokens.dtype == np.int32
        for kept in lists(decision.rows) + lists(decision.tokens):
            assert kept == sorted(set(kept))
            assert fixed <= set(kept) and 0 <= kept[0] and kept[-1] == prompt.n_tokens - 1


@given(cases())
def test_choices_repeat(case):
    """A policy remembers nothing between prompts, and prompts that run side by side do not mix."""
    first, second = case.policy.start(case.prompt), case.policy.start(case.prompt)
    expected = case.decide()
    for layer, decision in enumerate(expected):
        for observe in (first, second):
            again = observe(case.scores(layer))
            assert np.array_equal(again.rows, decision.rows)
            assert (again.tokens is None) == (decision.tokens is None)
            assert (again.variance, again.ratio) == (decision.variance, decision.ratio)


@given(cases(), st.randoms())
def test_rows_follow_their_heads(case, random):
    """Each KV head is chosen for by itself."""
    order = list(range(len(case.attention[0])))
    random.shuffle(order)
    for decision, permuted in zip(case.decide(), case.decide(heads=order), strict=True):
        assert np.array_equal(permuted.rows, decision.rows[order])


@given(cases(kinds=(ASL,)), st.randoms())
def test_order_of_heads_changes_no_token(case, random):
    """Small whole numbers, whose sums are exact in any order."""
    case = replace(case, attention=[np.floor(attention) for attention in case.attention])
    case = case.with_policy(kernel_size=1, normalise_heads=False)
    order = list(range(len(case.attention[0])))
    random.shuffle(order)
    assert_same_tokens(case.decide(heads=order), case.decide())


@given(cases(kinds=(ASL,), n_head_kv=st.just(2)))
def test_order_of_two_heads_changes_no_token(case):
    """Sums of two commute whatever their rounding: this holds for every parameter."""
    assert_same_tokens(case.decide(heads=[1, 0]), case.decide())


def assert_same_tokens(actual: list[Decision], expected: list[Decision]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.variance, a.ratio) == (b.variance, b.ratio)
        assert lists(a.tokens) == lists(b.tokens)


@given(cases())
def test_higher_scores_win(case):
    """Without pooling and span, no dropped token scores more than a kept one that competed."""
    case = case.with_policy(**PLAIN)
    policy, n_tokens = case.policy, case.prompt.n_tokens
    competing = set(range(policy.n_sink, n_tokens - policy.window))
    for layer, decision in enumerate(case.decide()):
        per_head = case.attention[layer]
        choices = list(zip(per_head, lists(decision.rows), strict=True))
        if policy.normalise_heads:
            totals = per_head[:, policy.n_sink : n_tokens - policy.window].sum(axis=-1, keepdims=True)
            per_head = per_head / np.maximum(totals, np.finfo(np.float32).tiny)
        choices += [(per_head.sum(axis=0), kept) for kept in lists(decision.tokens)]
        for scores, kept in choices:
            won, lost = competing & set(kept), competing - set(kept)
            assert min(scores[list(won)]) >= max(scores[list(lost)], default=-np.inf)


@given(cases(kinds=(SnapKV,)), st.data())
def test_raising_a_kept_score_keeps_it(case, data):
    """More attention never drops a token (each head's ranking has its own scale). Where it reaches back, the token before
    has the same score and comes first."""
    case = case.with_policy(span_back=0)
    decision, head = case.decide()[0], data.draw(st.integers(0, len(case.attention[0]) - 1))
    competing = [i for i in decision.rows[head] if case.policy.n_sink <= i < case.prompt.n_tokens - case.policy.window]
    token = data.draw(st.sampled_from(competing))
    case.attention[0][head, token] += 10
    assert token in case.decide()[0].rows[head]


@given(cases(kinds=(SnapKV,)))
def test_attention_to_sinks_and_window_decides_nothing(case):
    """Without pooling: what they receive is no one else's score."""
    case, expected = case.with_policy(kernel_size=1), case.with_policy(kernel_size=1).decide()
    for attention in case.attention:
        attention[:, : case.policy.n_sink] += 100
        attention[:, case.prompt.n_tokens - case.policy.window :] += 100
    for decision, before in zip(case.decide(), expected, strict=True):
        assert np.array_equal(decision.rows, before.rows)


@given(cases(), st.integers(-3, 3))
def test_scale_of_a_normalised_head_changes_nothing(case, exponent):
    """A power of two, so that nothing is rounded."""
    case = case.with_policy(normalise_heads=True)
    scaled = [attention.copy() for attention in case.attention]
    for attention in scaled:
        attention[0] *= 2.0**exponent
    assume(all((attention[:, case.policy.n_sink : -case.policy.window] > 0).any(axis=-1).all() for attention in scaled))
    for a, b in zip(replace(case, attention=scaled).decide(), case.decide(), strict=True):
        assert np.array_equal(a.rows, b.rows) and lists(a.tokens) == lists(b.tokens)


def test_span_keeps_what_follows():
    """One attended token takes 3 before it and 16 after it along."""
    attention = np.full((1, 200), 0.01, dtype=np.float32)
    attention[0, 100] = 1
    policy = SnapKV(window=8, kernel_size=1, n_sink=4, span_forward=16, span_back=3)
    rows = policy.start(Prompt(200, 8 + 4 + 20, 1))(LayerScores(0, attention, 8)).rows[0]
    assert rows.tolist() == [0, 1, 2, 3, *range(97, 117), *range(192, 200)]


def test_what_follows_another_attended_token_comes_before_what_is_behind_one():
    """back_room: a token that is attended half as much, and what follows it, beat the places behind the first."""
    attention = np.full((1, 200), 0.01, dtype=np.float32)
    attention[0, 50], attention[0, 100] = 0.5, 1
    scoring = {"window": 8, "kernel_size": 1, "n_sink": 4, "span_forward": 9, "span_back": 5}

    def kept(back_room: int, n_kept: int) -> list[int]:
        policy = SnapKV(**scoring, back_room=back_room)
        rows = policy.start(Prompt(200, n_kept, 1))(LayerScores(0, attention, 8)).rows[0]
        return [row for row in rows.tolist() if 4 <= row < 192]

    assert kept(32, 8 + 4 + 20) == [*range(45, 50), *range(95, 110)]
    assert kept(50, 8 + 4 + 20) == [*range(50, 60), *range(100, 110)]
    assert kept(60, 8 + 4 + 25) == [*range(50, 60), *range(95, 110)]


class Crowded:
    """A late budget of some tokens, whose prompt looks for several places, or does not."""

    n_held, n_most, n_window, spreads = 300, 300, 32, True

    def __init__(self, n_kept: int, crowded: bool, n_asking: int = 0) -> None:
        self._n_kept, self.crowded, self.n_asking = n_kept, crowded, n_asking

    def reads(self, layer: int) -> bool:
        return False

    def see(self, scores: LayerScores) -> None:
        """Nothing."""

    def choose(self, layer: int, last: int) -> int | None:
        return self._n_kept


QUESTION = np.full((1, 400), 0.01, dtype=np.float32)
QUESTION[0, 360:] = 1  # draws more attention than what is asked for
QUESTION[0, 100:120] = 0.5


@pytest.mark.parametrize("n_question, taken", [(0, 20), (8, 20), (40, 0)])
@pytest.mark.parametrize("crowded", [True, False])
def test_a_question_comes_last(crowded, n_question, taken):
    """Its words draw more attention than what is asked for; the window's 8 tokens are kept all the same."""
    policy = ASL(window=8, kernel_size=1, n_sink=4, n_question=n_question, min_layer=1, obs_layers=2, tau=2)
    prompt = Prompt(400, 300, 2, late=Crowded(8 + 4 + 20, crowded))
    tokens = Case(policy, prompt, [QUESTION, QUESTION]).decide()[-1].tokens.tolist()
    recent = [token for token in tokens if 360 <= token < 392]
    assert len(recent) == (taken if crowded else 20) and tokens[-8:] == list(range(392, 400))
    assert sum(100 <= token < 120 for token in tokens) == 20 - len(recent)


@pytest.mark.parametrize("n_asking, taken", [(0, 0), (5, 5), (20, 20), (99, 20)])
def test_so_many_of_its_words_compete_all_the_same(n_asking, taken):
    policy = ASL(window=8, kernel_size=1, n_sink=4, n_question=40, min_layer=1, obs_layers=2, tau=2)
    prompt = Prompt(400, 300, 2, late=Crowded(8 + 4 + 20, True, n_asking))
    tokens = Case(policy, prompt, [QUESTION, QUESTION]).decide()[-1].tokens.tolist()
    assert [sum(360 <= token < 392 for token in tokens), sum(100 <= token < 120 for token in tokens)] == [
        taken,
        20 - taken,
    ]


def test_of_a_short_prompt_a_tenth_is_taken_for_its_question():
    policy = ASL(window=8, n_question=48, min_layer=1, obs_layers=2, tau=2)
    attention = [np.ones((1, 120), dtype=np.float32)] * 2
    tokens = Case(policy, Prompt(120, 118, 2, late=Crowded(116, True)), attention).decide()[-1].tokens
    assert sorted(set(range(120)) - set(tokens.tolist())) == [108, 109, 110, 111]


def first_monitored(case: Case) -> int:
    policy, n_layer = case.policy, case.prompt.n_layer
    return (
        policy.min_layer
        if policy.min_layer is not None
        else min(max(1, round(n_layer * policy.min_depth)), n_layer - 1)
    )


def until_selection(decisions: list[Decision]) -> list[Decision]:
    """Those up to the one that selects; later ones measure nothing."""
    chosen = [layer for layer, decision in enumerate(decisions) if decision.tokens is not None]
    assert len(chosen) <= 1, "selected twice"
    for decision in decisions[chosen[0] + 1 :] if chosen else []:
        assert decision.variance is decision.ratio is None
    return decisions[: chosen[0] + 1] if chosen else decisions


@given(cases(kinds=(ASL,)))
def test_asl_variance_is_that_of_the_newest_layers(case):
    """Over the leading tokens: obs_tokens, but no more than are kept besides sinks and window."""
    policy, history = case.policy, []
    top = case.prompt.n_kept - policy.n_sink - policy.window
    top = top if policy.obs_tokens is None else min(top, policy.obs_tokens)
    begin = first_monitored(case)
    for layer, decision in enumerate(until_selection(case.decide())):
        per_token = policy.head_scores(case.scores(layer)).sum(axis=0)
        history.append(ranking.ranks(per_token))
        if layer < begin:
            assert decision.variance is decision.ratio is decision.tokens is None
        else:
            newest = history[-min(policy.obs_layers, begin + 1) :]
            assert decision.variance == ranking.rank_variance(newest, top)


@given(cases(kinds=(ASL,)))
def test_asl_first_ratio_is_one(case):
    """So that the earliest selection is one layer after the first monitored one."""
    case = case.with_policy(variance_reference=case.policy.variance_reference.replace("random", "first"))
    begin = first_monitored(case)
    decisions = case.decide()
    assert all(decision.tokens is None for decision in decisions[: begin + 1])
    if begin < len(decisions):
        assert decisions[begin].ratio == 1


@given(cases(kinds=(ASL,)))
def test_asl_peak_is_never_above_first(case):
    """The peak is at least the first value, so it selects no later."""
    peak = until_selection(case.with_policy(variance_reference="peak").decide())
    first = until_selection(case.with_policy(variance_reference="first").decide())
    assert len(peak) <= len(first)
    for p, f in zip(peak, first):
        assert p.variance == f.variance
        if p.ratio is not None:
            assert 0 <= p.ratio <= 1 and p.ratio <= f.ratio
        assert p.tokens is not None or f.tokens is None


@given(cases(kinds=(ASL,)))
def test_asl_random_ratio_depends_on_its_own_layer_alone(case):
    """So the first monitored layer may select; ranks in any order have a ratio of some (L - 1) / L of L layers."""
    case = case.with_policy(variance_reference="random")
    n_ranked = case.prompt.n_tokens - case.policy.n_sink - case.policy.window
    decisions = until_selection(case.decide())
    for decision in decisions[first_monitored(case) :]:
        if n_ranked > 1 and min(case.policy.obs_layers, first_monitored(case) + 1) > 1:
            assert decision.ratio == pytest.approx(decision.variance * 12 / (n_ranked**2 - 1))


def test_asl_random_needs_two_layers_to_compare():
    """The ranks of one do not vary, which tells nothing."""
    policy = ASL(window=4, variance_reference="random", tau=0.3)
    (decision,) = Case(policy, Prompt(60, 20, 1), [np.ones((1, 60), dtype=np.float32)]).decide()
    assert (decision.variance, decision.ratio, decision.tokens) == (0, 1, None)


@given(cases(kinds=(ASL,)))
def test_asl_selects_below_tau(case):
    for decision in until_selection(case.decide()):
        assert (decision.tokens is not None) == (decision.ratio is not None and decision.ratio < case.policy.tau)


def test_asl_selects_once_ranks_settle():
    """Layers 0-3 rank at random, later ones all alike: the variance falls to 0 when those fill the window, once."""
    rng, policy = np.random.default_rng(0), ASL(window=4, obs_layers=3, min_layer=3, tau=0.3)
    settled = rng.random((2, 80), dtype=np.float32)
    attention = [rng.random((2, 80), dtype=np.float32) if layer < 4 else settled for layer in range(9)]
    decisions = Case(policy, Prompt(80, 20, 9), attention).decide()
    assert [decision.tokens is not None for decision in decisions] == [False] * 6 + [True] + [False] * 2
    assert decisions[6].variance == 0 and not decisions[6].keep_asking and not decisions[6].second_pass


@given(cases(kinds=(ASL,)))
def test_tau_0_never_selects(case):
    """Not even where few layers attend to the whole prompt, of which the first may select at once."""
    case = case.with_policy(tau=0)
    sliding = replace(case, prompt=replace(case.prompt, full_layers=tuple(range(case.prompt.n_layer))))
    assert all(decision.tokens is None for one in (case, sliding) for decision in one.decide())


@given(cases(kinds=(ASL,)))
def test_two_passes_start_again_where_one_selects(case):
    """And with the same tokens: the subclass differs in that alone."""
    policy = case.policy
    twice = TwoPassASL(**{field.name: getattr(policy, field.name) for field in fields(policy)})
    for once, again in zip(case.decide(), case.decide(twice), strict=True):
        assert lists(once.tokens) == lists(again.tokens) and lists(once.rows) == lists(again.rows)
        assert (once.second_pass, again.second_pass) == (False, once.tokens is not None)


@pytest.mark.parametrize(
    "name, n_layer, first",
    [("asl", 32, 10), ("asl", 16, 5), ("asl", 30, 9), ("asl-span", 30, 17), ("asl-span", 2, 1), ("asl-span", 1, 0)],
)
def test_first_monitored_layer_follows_the_depth(name, n_layer, first):
    """Published: 10 of 32. Layer 0 is monitored only where there is no other."""
    policy = make_policy(name)
    case = Case(policy, Prompt(60, 50, n_layer), list(np.ones((n_layer, 1, 60), dtype=np.float32)))
    monitored = [layer for layer, decision in enumerate(case.decide()) if decision.variance is not None]
    assert monitored == ([] if first is None else list(range(first, n_layer)))


@given(st.integers(1, 50), st.integers(0, 3))
def test_none_keeps_everything(n_tokens, layer):
    assert not Full().needs_scores(layer, 4)
    assert Full().start(Prompt(n_tokens, n_tokens, 4))(LayerScores(layer, np.empty((0, n_tokens)), 32)) == Decision()
