"""`Llama` on a tiny model: what llama_cpp.Llama promises, under a budget. Prompts that follow each other: test_llama_reuse.py."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from asl_gguf import ContextFullError
from asl_gguf.policies import DEFAULT, make_policy
from harness import llama_cpp, prompt
from prefills import ON_ANY_MODEL
from tiny_gguf import FIRST_BYTE
from tiny_llama import N_CTX, N_LAYER, READABLE, SETTLES, TEXT, cells, chat, complete, greedy, logits

MIN_KEPT = make_policy(DEFAULT).min_kept


@pytest.mark.parametrize("budget, temperature", [(0.2, 0.0), (60, 0.9), (None, 0.9)])
def test_every_way_to_call_gives_one_text(make, budget, temperature):
    llm = make(asl_budget=budget)
    options = {"max_tokens": 16, "temperature": temperature, "seed": 7, "logit_bias": READABLE}
    texts = [
        llm(TEXT, **options)["choices"][0]["text"],
        "".join(part["choices"][0]["text"] for part in llm(TEXT, stream=True, **options)),
        llm.create_completion(TEXT, **options)["choices"][0]["text"],
        "".join(part["choices"][0]["text"] for part in llm.create_completion(TEXT, stream=True, **options)),
        make(asl_budget=budget)(TEXT, **options)["choices"][0]["text"],
    ]
    assert texts == [texts[0]] * len(texts) and len(texts[0]) >= 8
    whole = llm.create_chat_completion(chat(TEXT), **options)
    parts = llm.create_chat_completion(chat(TEXT), stream=True, **options)
    streamed = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
    assert whole["choices"][0]["message"]["content"] == streamed and len(streamed) >= 8
    assert whole["usage"]["completion_tokens"] == 16
    assert whole["usage"]["prompt_tokens"] == llm.last_prefill.prompt_tokens
    assert llm.last_prefill.pruned == (budget in (0.2, 60))


def test_another_seed_gives_another_text(make):
    llm = make(asl_budget=0.2)
    texts = {
        llm(TEXT, max_tokens=12, temperature=1.5, seed=seed, logit_bias=READABLE)["choices"][0]["text"]
        for seed in (1, 2)
    }
    assert len(texts) == 2


def test_without_a_budget_it_is_stock(make, stock):
    ours, theirs = make(), stock()
    for n_tokens in (1, 300, 600):
        assert greedy(ours, prompt(n_tokens), 12) == greedy(theirs, prompt(n_tokens), 12)
        assert np.array_equal(logits(ours), logits(theirs))
        assert ours.last_prefill.kept_tokens == n_tokens and ours.last_prefill.reason
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    answers = [llm.create_chat_completion(chat(TEXT), **options)["choices"] for llm in (ours, theirs)]
    assert answers[0] == answers[1]
    assert (ours.n_ctx(), ours.n_cells) == (theirs.n_ctx(), theirs.n_ctx())


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize(
    "options",
    [{"asl_budget": 1.0}, {"asl_budget": 2000}, {"asl_budget": 0.3, "asl_policy": "none"}],
    ids=["share", "tokens", "policy"],
)
def test_nothing_pruned_is_stock_bit_for_bit(make, stock, options, flash):
    """Through the parent with asl_dequant=False; through the engine with the default, since F32 weights stay as they are."""
    theirs = stock(flash_attn=flash, n_ubatch=64)
    for dequant, lengths in ((False, (1, 33, 63, 64, 65)), ("auto", (256, 320, 321))):
        ours = make(flash_attn=flash, n_ubatch=64, asl_dequant=dequant, **options)
        for n_tokens in lengths:
            theirs.reset()
            assert greedy(ours, prompt(n_tokens), 1) == greedy(theirs, prompt(n_tokens), 1)
            assert np.array_equal(logits(ours), logits(theirs)), (dequant, n_tokens)
            assert greedy(ours, prompt(n_tokens), 6) == greedy(theirs, prompt(n_tokens), 6)
            assert np.array_equal(logits(ours), logits(theirs)), (dequant, n_tokens)
            assert not ours.last_prefill.pruned and ours.last_prefill.reason


@pytest.mark.parametrize("budget", [0.1, 1 / 3, 0.999])
def test_a_share_is_kept_exactly(make, budget):
    llm = make(asl_budget=budget)
    for n_tokens in (257, 300, 401):
        greedy(llm, prompt(n_tokens), 1)
        expected = max(math.floor(budget * n_tokens), MIN_KEPT)
        report = llm.last_prefill
        assert (report.kept_tokens, report.budget_tokens) == (expected, expected)
        assert len(cells(llm).positions) == expected and report.pruned and report.reason is None


@pytest.mark.parametrize("budget", [MIN_KEPT, 60, 299])
def test_a_number_of_tokens_is_kept_exactly(make, budget):
    """Of any prompt that is longer, however short it is."""
    llm = make(asl_budget=budget)
    for n_tokens in (1, MIN_KEPT, MIN_KEPT + 1, 61, 300):
        greedy(llm, prompt(n_tokens), 1)
        expected = min(budget, n_tokens)
        assert (llm.last_prefill.kept_tokens, len(cells(llm).positions)) == (expected, expected)
        assert llm.last_prefill.pruned == (n_tokens > budget) == (llm.last_prefill.reason is None)


@pytest.mark.parametrize("min_prompt", [None, 0, 400])
def test_short_prompts_are_left_alone(make, stock, min_prompt):
    limit = 256 if min_prompt is None else min_prompt
    llm = make(asl_budget=0.2, **({} if min_prompt is None else {"asl_min_prompt": min_prompt}))
    if limit:
        assert greedy(llm, prompt(limit)) == greedy(stock(), prompt(limit))
        assert (llm.last_prefill.kept_tokens, llm.last_prefill.reason) == (limit, "the prompt fits the budget")
    longer = max(limit, MIN_KEPT) + 1
    greedy(llm, prompt(longer, seed=1), 1)
    assert llm.last_prefill.pruned and llm.last_prefill.kept_tokens == max(longer // 5, MIN_KEPT)


@pytest.mark.parametrize("policy", ["asl", DEFAULT, SETTLES, "snapkv"], ids=["asl", "default", "settles", "snapkv"])
def test_report(make, policy):
    llm = make(asl_budget=0.2, asl_policy=policy, asl_room=64)
    complete(llm, prompt(400), 5)
    report = llm.last_prefill
    assert (report.prompt_tokens, report.kept_tokens, report.n_layer) == (400, 80, N_LAYER)
    assert report.kv_bytes == llm.n_cells * report.kv_bytes_prompt // 80 < report.kv_bytes_full
    assert report.kv_bytes_full == N_CTX * report.kv_bytes_prompt_full // 400
    assert 0 < report.kv_bytes_prefill_peak <= report.kv_bytes_full // N_LAYER
    assert (report.selection_layer is not None) == (policy is SETTLES)
    assert report.selection_layer in (None, 3)
    n_scored = N_LAYER if report.selection_layer is None else report.selection_layer + 1
    assert len(report.attention_mass_by_layer) == n_scored
    assert 0 < report.attention_mass <= 1 and all(0 < mass <= 1 for mass in report.attention_mass_by_layer)
    monitored = {"snapkv": [], SETTLES: [3], DEFAULT: [3, 4, 5]}.get(policy, list(range(2, N_LAYER)))
    assert [layer for layer, _, _ in report.variance] == monitored
    assert set(report.seconds) == {"setup", "layers", "policy", "rows", "finish"}
    assert 0.5 * report.prefill_seconds < sum(report.seconds.values()) <= report.prefill_seconds
    assert json.loads(json.dumps(report.to_dict()))["kept_tokens"] == 80
    assert report.reused_tokens == 0 and report.pruned
    assert llm.last_decode.tokens == 4 and llm.last_decode.tokens_per_second > 0


@pytest.mark.parametrize("name", ON_ANY_MODEL)
def test_every_policy_by_its_name(make, name):
    """It prunes, repeats itself after another prompt, and a turn goes on from what it left."""
    llm, turn = make(asl_budget=100, asl_policy=name), prompt(20, seed=2)
    first = greedy(llm, prompt(300))
    report = llm.last_prefill
    assert report.policy == name and report.pruned == (name != "none")
    if name == "none":
        return
    assert report.passes == (2 if name in ("gemfilter", "specprefill") else 1) and report.budget_tokens == 100
    assert report.rows_by_layer == (100,) * N_LAYER or name == "pyramidinfer"
    assert len(cells(llm).positions) == report.kept_tokens + len(first) - 1
    json.dumps(report.to_dict())
    expected = greedy(llm, [*prompt(300), *first, *turn])
    assert llm.last_prefill.reused_tokens == 300 + len(first) - 1
    greedy(llm, prompt(280, seed=1))
    assert greedy(llm, prompt(300)) == first
    assert greedy(llm, [*prompt(300), *first, *turn]) == expected


def test_selection_says_so_in_the_cells(make):
    """Up to the selection layer each KV head has tokens of its own; deeper layers share theirs."""
    llm = make(asl_budget=0.2, asl_policy=SETTLES)
    greedy(llm, prompt(400), 1)
    held = cells(llm)
    assert len(held.positions) == 80 and held.positions[-12:] == list(range(388, 400))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"asl_budget": 0.2}, 1024),  # 1,024 cells of room by default: as many as n_ctx has
        ({"asl_budget": 0.2, "asl_room": 64}, 512),  # min_prompt + 64, in steps of 256
        ({"asl_budget": 0.2, "asl_room": 64, "asl_min_prompt": 0}, 512),
        ({"asl_budget": 0.1, "asl_room": 64, "asl_min_prompt": 0}, 256),
        ({"asl_budget": 40, "asl_room": 64}, 256),
        ({"asl_budget": 2000, "asl_room": 64}, 1024),
        ({"asl_budget": 0.2, "asl_decode_ctx": 300}, 512),
        ({"asl_budget": 0.2, "asl_decode_ctx": 300, "asl_room": 2000}, 512),
        ({"asl_budget": 0.2, "asl_room": 1, "asl_policy": "none"}, 1024),
    ],
    ids=str,
)
def test_cells_of_the_decode_context(make, options, expected):
    llm = make(**options)
    assert llm.n_ctx() == N_CTX
    assert llm.n_cells == llama_cpp.llama_n_ctx(llm.ctx) == expected


def test_n_ctx_0_is_the_training_context(make):
    llm = make(n_ctx=0, asl_budget=0.1)
    assert llm.n_ctx() == 4096 and llm.n_cells == 1536
    greedy(llm, prompt(1100), 1)
    assert llm.last_prefill.kept_tokens == 110


@pytest.mark.parametrize("n_batch, n_ubatch", [(512, 512), (64, 24), (2048, 512), (300, 100)])
def test_chunks(make, stock, n_batch, n_ubatch):
    ours = make(asl_budget=1.0, n_batch=n_batch, n_ubatch=n_ubatch)
    theirs = stock(n_batch=n_batch, n_ubatch=n_ubatch)
    assert greedy(ours, prompt(530), 1) == greedy(theirs, prompt(530), 1)
    assert np.array_equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammar(make, temperature):
    llm = make(asl_budget=0.2, asl_policy=SETTLES)
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "the " [0-9] [0-9] [0-9] (" in" | " on") "!"', verbose=False)
    for _ in range(2):
        choice = complete(llm, prompt(300), 40, grammar=grammar, logit_bias=None, temperature=temperature, seed=5)[
            "choices"
        ][0]
        assert re.fullmatch(r"the \d{3} (in|on)!", choice["text"]) and choice["finish_reason"] == "stop"
    assert llm.last_prefill.pruned


def test_stop_strings(make):
    llm = make(asl_budget=0.2)
    text = complete(llm, prompt(300), 24)["choices"][0]["text"]
    stop = text[6:8]
    for stream in (False, True):
        found = complete(llm, prompt(300), 24, stop=[stop, "not in there"], stream=stream)
        choices = [part["choices"][0] for part in (found if stream else [found])]
        assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
        assert choices[-1]["finish_reason"] == "stop"


def test_logit_bias_and_max_tokens(make):
    llm = make(asl_budget=0.2)
    for n_tokens in (1, 2, 9):
        found = complete(llm, prompt(300), n_tokens, logit_bias={FIRST_BYTE + ord("!"): 100.0})
        assert found["choices"][0]["text"] == "!" * n_tokens and found["choices"][0]["finish_reason"] == "length"
        assert found["usage"] == {"prompt_tokens": 300, "completion_tokens": n_tokens, "total_tokens": 300 + n_tokens}
        assert llm.last_decode.tokens == n_tokens - 1
        assert (llm.last_decode.tokens_per_second is None) == (n_tokens == 1)


@pytest.mark.parametrize("budget", [0.2, None])
def test_stopping_criteria_before_the_first_token(make, stock, budget):
    criteria = llama_cpp.StoppingCriteriaList([lambda ids, scores: True])
    found = [
        complete(llm, prompt(300), stopping_criteria=criteria)["choices"] for llm in (make(asl_budget=budget), stock())
    ]
    assert found[0] == found[1]


def test_an_answer_that_cannot_fit_is_refused_before_any_work(make):
    calls = []
    llm = make(asl_budget=200, asl_decode_ctx=256, asl_progress=lambda *call: calls.append(call))
    with pytest.raises(ContextFullError, match=r"expected at most 256 KV cells.*got 200.*57.*asl_decode_ctx=512"):
        complete(llm, prompt(300), 57)
    assert not calls and llm.last_prefill is None
    assert complete(llm, prompt(300), 56)["usage"]["completion_tokens"] == 56 and calls


def test_n_ctx_limits_the_answer(make):
    """As in stock, max_tokens is cut to what n_ctx leaves; the cells need not hold more."""
    llm = make(asl_budget=200, asl_decode_ctx=256)
    assert complete(llm, prompt(1000), 5000)["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize("max_tokens", [None, 0, -1])
def test_an_unlimited_answer_ends_where_the_cells_do(make, max_tokens):
    llm = make(asl_budget=200, asl_decode_ctx=256)
    for _ in range(2):
        found = complete(llm, prompt(300), max_tokens)
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] == 57  # the last one is sampled without a cell
        assert len(cells(llm).positions) == 256


def test_eval_beyond_the_cells(make):
    llm = make(asl_budget=200, asl_decode_ctx=256)
    greedy(llm, prompt(300), 1)
    llm.eval(prompt(30))
    before = greedy_from_here(llm)
    with pytest.raises(ContextFullError, match="expected at most 26 more tokens .of 256 KV cells.*got 27"):
        llm.eval(prompt(27))
    assert greedy_from_here(llm) == before and llm.n_tokens == 330
    llm.eval(prompt(26))
    with pytest.raises(ContextFullError, match="at most 0 more"):
        llm.eval([5])
    llm.reset()
    llm.eval(prompt(256))


def greedy_from_here(llm: Any) -> int:
    return int(logits(llm).argmax())


def test_eval_after_a_pruned_prompt_goes_on_from_it(make):
    """llm.eval and llm.sample, used as llama_cpp's low level: what generate does, one call at a time."""
    llm = make(asl_budget=0.2)
    expected, found = greedy(llm, prompt(300)), []
    llm.reset()
    found.append(next(llm.generate(prompt(300), temp=0.0)))
    while len(found) < len(expected):
        llm.eval(found[-1:])
        found.append(llm.sample(temp=0.0))
    assert found == expected


@pytest.mark.parametrize("architecture", ["qwen3", "phi3", "llama-moe"])
def test_other_architectures(make, stock, architecture):
    llm = make(architecture=architecture, asl_budget=0.2, asl_policy=SETTLES)
    first = greedy(llm, prompt(300))
    assert llm.last_prefill.pruned and greedy(llm, prompt(300)) == first
    whole, theirs = make(architecture=architecture, asl_budget=1.0), stock(architecture=architecture)
    assert greedy(whole, prompt(300)) == greedy(theirs, prompt(300))


@pytest.mark.parametrize(
    "options", [{"flash_attn": True}, {"flash_attn": True, "type_k": 8, "type_v": 8}, {"type_k": 8}], ids=str
)
def test_cache_types(make, options):
    llm = make(asl_budget=0.2, asl_policy=SETTLES, asl_room=64, **options)
    first = complete(llm, prompt(300), 12)["choices"]
    assert (
        complete(make(asl_budget=0.2, asl_policy=SETTLES, asl_room=64, **options), prompt(300), 12)["choices"] == first
    )
    assert llm.last_prefill.kv_bytes < llm.last_prefill.kv_bytes_full
