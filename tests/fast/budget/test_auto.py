"""`auto`: how it is written, what it chooses from a reading, and what a `Llama` keeps then."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.budget import late as late_budgets
from asl_gguf.budget.auto import AutoRule
from asl_gguf.budget.late import CALIBRATED, Thresholds, fixed_budget
from asl_gguf.budget.rule import BudgetContext
from asl_gguf.budget.targets import Auto, make_budget
from asl_gguf.cli.budgets import parse_budget
from asl_gguf.policies import REGISTRY
from asl_gguf.policies.contract import LayerScores
from asl_gguf.policies.reading import Reading, reading_of
from harness import prompt
from tiny_llama import N_HEAD_KV, N_LAYER, SETTLES, greedy, logits

N_CTX = 2048
TINY = (N_LAYER, N_HEAD_KV, 128)
NEVER, ALWAYS = 2.0, -1.0
"""thresholds that no reading reaches, and that every one passes"""


@pytest.mark.parametrize(
    "text, least, most",
    [
        ("auto", 0.05, 0.4),
        ("AUTO", 0.05, 0.4),
        ("auto:0.05-0.5", 0.05, 0.5),
        ("Auto:.1-1", 0.1, 1.0),
        ("auto:0.2-0.2", 0.2, 0.2),
    ],
)
def test_how_it_is_written(text, least, most):
    assert make_budget(text, 100) == Auto(text, least, most, 100) and parse_budget(text) == text


BAD = [
    "auto:",
    "auto:0.1",
    "auto:0.5-0.1",
    "auto:0-0.5",
    "auto:0.1-1.1",
    "auto:-0.1-0.5",
    "auto:0.1-0.5 ",
    "auto:1e-1-1",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_none(text):
    with pytest.raises(OptionError, match=rf"^asl_budget: expected 'auto'.*LEAST-MOST.*got {re.escape(repr(text))}$"):
        make_budget(text, 256)
    with pytest.raises(OptionError, match=r"^--budget: expected 'auto'"):
        parse_budget(text)


@pytest.mark.parametrize("name", [name for name, kind in REGISTRY.items() if kind.drops and not kind.decides_late])
def test_policies_that_do_not_decide_late(name, tiny_model):
    with pytest.raises(
        OptionError, match=rf"expected a policy that decides at its selection layer for auto, .* got {name}"
    ):
        Llama(str(tiny_model("llama")), asl_budget="auto", asl_policy=name)


FOUND = Thresholds(3, 4, document=0.12, found=(0.9, 0.95), chained=(0.98, 0.99), summary=(0.04, 0.06))


@pytest.mark.parametrize(
    "reading, need",
    [
        (Reading(0.09, 0.99), 0),
        (Reading(0.06, 0.95), 0),
        (Reading(0.01, 0.95), 1),
        (Reading(0.01, 0.99), 0),
        (Reading(0.09, 0.925), 0.25),
        (Reading(0.09, 0.8), 0.5),
        (Reading(0.05, 0.8), 0.5),
        (Reading(0.045, 0.8), 0.75),
        (Reading(0.04, 0.8), 1),
        (Reading(0.2, 0.8), 0.2),
        (Reading(0.2, 0.98), 0.2),
        (Reading(0.2, 0.985), 0.25),
        (Reading(0.2, 1.0), 0.5),
    ],
)
def test_what_a_reading_needs(reading, need):
    assert FOUND.need(reading) == pytest.approx(need)


@pytest.mark.parametrize(
    "reading, need",
    [
        (Reading(0.07, 0.955), 0.5),
        (Reading(0.07, 0.97), 0.25),
        (Reading(0.07, 0.985), 0),
        (Reading(0.075, 0.955), 0),
        (Reading(0.2, 0.97), 0.2),
    ],
)
def test_a_faint_place_has_to_stand_out_more(reading, need):
    assert replace(FOUND, faint=0.075).need(reading) == pytest.approx(need)


def test_every_model_s_thresholds_are_in_order():
    for one in CALIBRATED.values():
        assert one.found[1] <= one.sure[0] < one.sure[1] <= 1 and one.summary[1] < one.faint < one.document
        assert 0 < one.document < 1 and one.found[0] < one.found[1] <= 1 and one.chained[0] < one.chained[1] <= 1
        assert one.summary[0] < one.summary[1] < one.document and one.layer < one.deeper
        assert one.summary[0] < one.scattered[0] < one.scattered[1] < one.document


def scores(peak: float, n: int = 1000, document: float = 0.08) -> LayerScores:
    attention = np.full((2, n), 1e-9, dtype=np.float32)
    attention[:, 0] = 1 - document
    attention[:, 100:132] = document * peak / 32
    attention[:, 200:600] += document * (1 - peak) / 400
    return LayerScores(18, attention, 20)


def rule(text: str = "auto", **kwargs) -> AutoRule:
    return AutoRule.make(Auto.parse(text), BudgetContext("", 8192, REGISTRY["asl-span"](), 64, **kwargs))


SHAPE = next(iter(CALIBRATED))


def choice(made: AutoRule, seen: LayerScores, n_tokens: int | None = None, known: bool = True) -> int:
    n_tokens = n_tokens or seen.n_current
    late = made.late(n_tokens, made.kept(n_tokens), 0, SHAPE if known else (1, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late_budgets, "read", lambda scores, n_sink, n_queries=20: reading_of(scores.attention, n_sink))
        if late.reads(seen.layer):
            late.see(seen)
    return late.choose(29, 29)


@pytest.mark.parametrize(
    "text, n, least, most", [("auto", 1000, 100, 400), ("auto:0.2-0.5", 1000, 200, 500), ("auto", 4000, 200, 1600)]
)
def test_between_its_limits(text, n, least, most):
    made = rule(text)
    assert made.kept(n) == most
    assert made.late(n, most, 0, SHAPE).n_least == least
    chosen = [choice(made, scores(0.96, n, document)) for document in (0.01, 0.04, 0.05, 0.055, 0.065, 0.09)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] == most and chosen[-1] == least
    assert least < chosen[3] < chosen[2] < most
    several = [choice(made, scores(peak, n)) for peak in (0.5, 0.9, 0.94, 0.96)]
    assert several[0] == several[1] == least + (most - least) / 2 > several[2] > several[3] == least


@pytest.mark.parametrize(
    "document, peak, spreads",
    [
        (0.2, 1.0, True),
        (0.08, 0.5, True),
        (0.1, 0.5, False),
        (0.07, 0.96, False),
        (0.01, 0.8, False),
        (0.2, 0.8, False),
    ],
    ids=["chain", "several", "records", "faint", "summary", "look-up"],
)
def test_of_few_tokens_a_deeper_layer_selects_chains_and_several_answers(monkeypatch, document, peak, spreads):
    monkeypatch.setattr(late_budgets, "read", lambda scores, n_sink, n_queries=20: Reading(document, peak))
    layers = []
    for n_kept in (100, 200):
        late = fixed_budget(REGISTRY["asl-span"](), 1000, n_kept, SHAPE)
        late.see(scores(peak))
        layers.append(late.choose(18, 29))
        assert late.choose(22, 29) == n_kept
        assert (late.spreads, late.crowded) == (layers[-1] is None, layers[-1] is None and n_kept == 100)
        assert late.n_asking == (25 if late.crowded and document < 0.11 else 0)
    assert layers == [None if spreads else 100, 200 if peak == 0.8 and document > 0.1 else None]


def test_rows_that_are_held():
    """Twice a fixed budget; of few tokens what an answer's room has cells for; never all of a prompt, which would not be pruned."""
    policy = REGISTRY["asl-span"]()
    lengths = ((1000, 200), (350, 200), (5000, 1000), (1000, 119), (5000, 80))
    assert [fixed_budget(policy, *pair, SHAPE).n_held for pair in lengths] == [400, 349, 2000, 999, 1024]


def test_careful_without_thresholds_or_a_document():
    assert choice(rule(), scores(0.99), known=False) == 400
    assert choice(rule(), scores(0.99)) == 100
    assert choice(rule(), replace(scores(0.99), layer=17)) == 400
    assert choice(rule("auto:0.5-0.9"), LayerScores(18, np.ones((2, 60), np.float32), 20), 300) == 270


def test_short_prompts_and_protected_tokens():
    made = rule()
    assert made.kept(256) == 256 and made.late(256, 256, 0, SHAPE) is None
    assert made.late(1000, 400, 200, SHAPE).n_least == 237
    assert made.late(1000, 400, 390, SHAPE).n_least == 400


ONE_PLACE = Thresholds(3, 4, NEVER, (ALWAYS, 0), (0, 1), (ALWAYS - 1, ALWAYS))
ALL_OF_IT = Thresholds(3, 4, NEVER, (NEVER, 3), (0, 1), (NEVER, 3))


@pytest.fixture
def thresholds(monkeypatch):
    """Sets those of the tiny model."""
    return lambda value: monkeypatch.setitem(late_budgets.CALIBRATED, TINY, value)


def test_a_llama_without_thresholds(make):
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    fixed = make(n_ctx=N_CTX, asl_budget=0.5, asl_policy=SETTLES)
    assert llm.n_cells == fixed.n_cells
    report = llm.prefill(prompt(1000))
    assert report.kept_tokens == report.budget_tokens == 500 and report.selection_layer == 3
    assert re.fullmatch(
        r"auto:0.1-0.5: 500 tokens, the upper limit: no thresholds are known for this model \(asl-gguf calibrate .*\)",
        report.budget_choice,
    )
    assert not llm.prefill(prompt(200, seed=1)).pruned and llm.last_prefill.budget_choice is None


def test_a_llama_that_finds(make, thresholds):
    """Everything looks found: the least is kept, and answers go on from it as from a fixed budget's."""
    thresholds(ONE_PLACE)
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    report = llm.prefill(prompt(1000))
    assert report.kept_tokens == report.budget_tokens == 100 == len(report.selected)
    assert set(report.rows_by_layer) == {100} and report.kv_bytes_prompt == report.kv_bytes_prompt_full / 10
    assert report.budget_choice.startswith("auto:0.1-0.5: 100 tokens: ") and "budget" in report.rows()
    assert len(greedy(llm, prompt(1000))) == 8
    assert 0 < report.attention_mass < 1


def test_more_where_more_is_needed(make, thresholds):
    found = []
    for value in (ONE_PLACE, ALL_OF_IT):
        thresholds(value)
        llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
        report = llm.prefill(prompt(1000))
        found.append(((report.kept_tokens, report.selection_layer), logits(llm)))
    assert [one for one, _ in found] == [(100, 3), (500, 4)]
    assert not np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("value, kept, layer", [(ONE_PLACE, 100, 3), (ALL_OF_IT, 500, 4)], ids=["found", "all-of-it"])
def test_with_k_v_of_all_tokens(make, thresholds, value, kept, layer):
    """Every question chooses anew, and its budget and layer too, as a prompt that runs from its start does."""
    thresholds(value)
    llm, alone = (
        make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES, asl_full_kv=full, asl_dequant=False)
        for full in (True, False)
    )
    document, question = prompt(900), prompt(100, seed=1)
    assert llm.prefill(document).selection_layer == layer
    reports = [one.prefill([*document, *question]) for one in (llm, alone)]
    assert reports[0].reused_tokens > 800
    for report in reports:
        assert (report.kept_tokens, report.selection_layer) == (kept, layer)
        assert f"{kept} tokens: " in report.budget_choice
    assert reports[0].selected == reports[1].selected


@pytest.mark.parametrize("n_new", [1, 9, 19, 21])
def test_a_short_question_is_read_with_tokens_before_it(make, thresholds, n_new):
    """With K/V of all tokens at hand, at least so many run again as are read; of a hundred tokens, more than the window."""
    thresholds(ALL_OF_IT)
    llm, alone = (make(n_ctx=N_CTX, asl_budget=100, asl_policy=SETTLES, asl_full_kv=full) for full in (True, False))
    document = prompt(900)
    llm.prefill(document)
    reports = [one.prefill([*document, *prompt(n_new, seed=1)]) for one in (llm, alone)]
    assert 800 < reports[0].reused_tokens <= 900 + n_new - 20
    assert reports[0].selected == reports[1].selected and reports[0].kept_tokens == 100


def test_a_turn_keeps_to_the_upper_limit(make, thresholds):
    """Its scores are shared with what came before: no threshold was found for that."""
    thresholds(ONE_PLACE)
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.5", asl_policy=SETTLES)
    first = prompt(900)
    answer = greedy(llm, first, 4)
    greedy(llm, [*first, *answer, *prompt(500, seed=1)], 1)
    assert llm.last_prefill.turns[0] == (900, 100) and llm.last_prefill.turns[1][1] == llm.last_prefill.turns[1][0] // 2


def test_a_fixed_budget_looks_again(make, thresholds):
    """It keeps as many tokens and cells as ever, and a deeper layer chooses them where much is needed."""
    found = []
    for value in (None, ONE_PLACE, ALL_OF_IT):
        if value is not None:
            thresholds(value)
        llm = make(n_ctx=N_CTX, asl_budget=0.2, asl_policy=SETTLES, asl_dequant=False)
        report = llm.prefill(prompt(1000))
        assert report.kept_tokens == report.budget_tokens == 200 and set(report.rows_by_layer) == {200}
        assert report.budget_choice is None
        found.append((report.selection_layer, report.selected, logits(llm).tolist(), llm.n_cells))
    assert found[0] == found[1]
    assert found[2][0] == 4 and found[2][1] != found[1][1] and found[2][3] == found[1][3]


@pytest.mark.parametrize("budget, kept", [(0.2, 200), (100, 100), ("auto:0.1-0.3", 300)])
def test_rows_in_excess_go_where_no_layer_selects(make, thresholds, budget, kept):
    thresholds(ALL_OF_IT)
    llm = make(n_ctx=N_CTX, asl_budget=budget, asl_policy=replace(SETTLES, tau=0.0))
    report = llm.prefill(prompt(1000))
    assert (report.selection_layer, report.kept_tokens, report.budget_tokens) == (None, kept, kept)
    assert set(report.rows_by_layer) == {kept} and len(greedy(llm, prompt(1000))) == 8


def test_other_policies_stay_as_published(thresholds):
    thresholds(ALL_OF_IT)
    assert fixed_budget(REGISTRY["asl"](), 1000, 200, TINY) is None
    assert fixed_budget(replace(SETTLES, look_again=False), 1000, 200, TINY) is None
    assert fixed_budget(SETTLES, 1000, 200, TINY) is not None and fixed_budget(SETTLES, 200, 200, TINY) is None
    assert fixed_budget(SETTLES, 1000, 200, (1, 1, 1)) is None


def test_rows_in_excess_have_to_fit_the_cells(make, thresholds):
    """Where there is no room for twice the budget, layers hold what there is room for."""
    thresholds(ALL_OF_IT)
    llm = make(n_ctx=N_CTX, asl_budget=400, asl_policy=SETTLES, asl_decode_ctx=512)
    assert llm.prefill(prompt(1000)).kept_tokens == 400 and len(greedy(llm, prompt(1000))) == 8


def test_a_guard_reads_the_prompt(make, thresholds):
    """With thresholds it needs no second prefill: more is kept where what is looked for stands in no one place."""
    for value, kept in ((ONE_PLACE, 100), (ALL_OF_IT, 400)):
        thresholds(value)
        llm = make(n_ctx=N_CTX, asl_budget=0.1, asl_guard=0.01, asl_policy=SETTLES)
        report = llm.prefill(prompt(1000))
        assert report.kept_tokens == report.budget_tokens == kept and not report.guard_attempts
        assert report.budget_choice.startswith(f"asl_guard: {kept} tokens: ")
    llm = make(n_ctx=N_CTX, asl_budget="auto:0.1-0.3", asl_guard=0.01, asl_policy=SETTLES)
    assert llm.prefill(prompt(1000)).kept_tokens == 300


def test_a_layer_is_read_before_it_is_chosen_from(make, thresholds):
    """A policy that would select earlier waits for the reading, and rows are its own as ever; a fixed budget does not wait."""
    thresholds(replace(ONE_PLACE, layer=4, deeper=5))
    auto, fixed = (make(n_ctx=N_CTX, asl_budget=value, asl_policy=SETTLES) for value in ("auto:0.1-0.5", 0.1))
    reports = [llm.prefill(prompt(1000)) for llm in (auto, fixed)]
    assert [report.selection_layer for report in reports] == [4, 3]
    assert [report.kept_tokens for report in reports] == [100, 100]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("text, n", [("auto:0.01-0.05", 330), ("auto:0.01-0.02", 1000), ("auto:0.01-0.12", 330)])
def test_a_limit_that_holds_no_wide_window(text, n, known):
    """The window that is read would take more tokens than are kept."""
    made = rule(text)
    most = made.kept(n)
    late = made.late(n, most, 0, SHAPE if known else (1, 1, 1))
    policy = made.context.policy
    assert policy.window_of(n, late.n_window) + policy.first_kept <= most
