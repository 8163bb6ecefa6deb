"""`Llama(asl_full_kv=True)`: each question selects from K/V of all tokens, as if its prompt had come alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from asl_gguf import ContextFullError, Llama, OptionError, PrefillCancelled, PruningDisabledWarning, StateError
from asl_gguf.policies import SnapKV
from full_kv_prompts import CHUNK, DOCUMENT, N_ANSWER, OTHER, QUESTIONS, SELECTS, SHARED, kept_bytes, n_whole_layers
from harness import KVState, prompt
from tiny_gguf import UNPRUNABLE
from tiny_llama import EXCLAIM, N_CTX, N_LAYER, TEXT, cells, chat, complete, greedy, logits, n_kept

Make = Callable[..., Any]


@pytest.fixture(params=[SELECTS, SnapKV(window=32)], ids=["selects", "snapkv"], name="full")
def make_full(request, make) -> Make:
    """`full(**options)`: a `Llama` that keeps K/V of all tokens."""
    return lambda **options: make(**{**SHARED, "asl_full_kv": True, "asl_policy": request.param, **options})


def same_cells(one: Any, other: Any) -> bool:
    a, b = vars(cells(one)), vars(cells(other))
    return a.keys() == KVState.__dataclass_fields__.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def check_alone(llm: Any, fresh: Any, tokens: list[int], n_reused: int) -> list[int]:
    """The answer is that of an object that has seen nothing else: tokens, cells and logits. Returns it."""
    answer = greedy(llm, tokens, N_ANSWER)
    assert answer == greedy(fresh, tokens, N_ANSWER)
    assert same_cells(llm, fresh) and np.array_equal(logits(llm), logits(fresh))
    report, expected = llm.last_prefill, fresh.last_prefill
    assert report.reused_tokens == n_reused and expected.reused_tokens == 0
    assert report.full_kv_bytes == expected.full_kv_bytes == kept_bytes(report)
    n_whole = n_whole_layers(report)
    assert report.token_layers == (len(tokens) - n_reused) * n_whole + report.kept_tokens * (N_LAYER - n_whole)
    assert (report.selected, report.variance) == (expected.selected, expected.variance)
    assert report.kept_tokens == n_kept(len(tokens)) and report.pruned
    return answer


def test_questions_about_a_document(full):
    llm = full()
    for turn, question in enumerate((0, 1, 0, 2)):
        check_alone(llm, full(), DOCUMENT + QUESTIONS[question], len(DOCUMENT) if turn else 0)
        assert llm.last_prefill.reason is None


def test_follow_up_questions_select_again(full):
    """Among the document, the earlier questions and the answers."""
    llm, tokens = full(), DOCUMENT + QUESTIONS[0]
    answer = check_alone(llm, full(), tokens, 0)
    for question in QUESTIONS[1:3]:
        n_before, tokens = len(tokens), tokens + answer + question
        answer = check_alone(llm, full(), tokens, n_before)
        assert llm.last_prefill.reason == "selected again for this turn, from K/V of all tokens"


def test_without_the_option_they_go_on_from_what_was_kept(full):
    llm = full(asl_full_kv=False)
    tokens = DOCUMENT + QUESTIONS[0]
    greedy(llm, tokens + greedy(llm, tokens, N_ANSWER) + QUESTIONS[1], N_ANSWER)
    assert llm.last_prefill.reused_tokens == len(tokens) + N_ANSWER - 1 and llm.last_prefill.full_kv_bytes == 0


@pytest.mark.parametrize("stream", [False, True])
def test_chat(llm_full, stream):
    """Turns whose texts end anywhere: within the rounding of chunks that end elsewhere."""
    llm, fresh = llm_full(), llm_full()
    messages, n_before = chat(TEXT[:150]), 0
    for turn in range(3):
        found = llm.create_chat_completion(messages, max_tokens=6, temperature=0, logit_bias=EXCLAIM, stream=stream)
        parts = [part["choices"][0]["delta"].get("content") or "" for part in found] if stream else []
        assert "".join(parts) == "!" * 6 or found["choices"][0]["message"]["content"] == "!" * 6
        report = llm.last_prefill
        assert report.pruned and report.kept_tokens == n_kept(report.prompt_tokens)
        assert (report.reused_tokens, report.reason is None) == (n_before, turn == 0)
        fresh.reset()
        greedy(fresh, llm._input_ids.tolist()[: report.prompt_tokens], 1)
        fresh.eval(llm._input_ids.tolist()[report.prompt_tokens :])
        np.testing.assert_allclose(logits(llm), logits(fresh), atol=0.1)
        n_before = report.prompt_tokens
        messages += [{"role": "assistant", "content": "!" * 6}, *chat(f"And on day {turn}?")]


def test_the_same_prompt_again(full):
    """Without an answer in between it is there; after one, only the window's tokens run."""
    calls: list[int] = []
    llm = full(asl_progress=lambda *call: calls.append(call))
    llm.prefill(OTHER)
    expected = llm.last_prefill
    calls.clear()
    answer = greedy(llm, OTHER, N_ANSWER)
    assert not calls and llm.last_prefill.reused_tokens == len(OTHER)
    assert llm.last_prefill.full_kv_bytes == expected.full_kv_bytes > 0
    assert greedy(llm, OTHER, N_ANSWER) == answer
    n_whole = n_whole_layers(expected)
    n_work = 32 * n_whole + expected.kept_tokens * (N_LAYER - n_whole)
    assert calls[-1] == (n_work, n_work)
    assert llm.last_prefill.reused_tokens == len(OTHER) - 32 and llm.last_prefill.selected == expected.selected


def test_other_prompts(full):
    """The last prompt alone is kept; what it shares with the next one is reused, if it is more than a few tokens."""
    llm = full()
    for tokens, n_reused in (
        (DOCUMENT + QUESTIONS[0], 0),
        (OTHER, 0),
        (DOCUMENT + QUESTIONS[0], 0),
        (DOCUMENT[:96] + OTHER, 96),
        (DOCUMENT[:16] + OTHER, 0),
        (DOCUMENT[:16] + OTHER[:-32], len(OTHER) - 48),  # of which the window runs again
    ):
        check_alone(llm, full(), tokens, n_reused)


def test_a_past_that_ends_inside_a_chunk(full):
    """Rounding alone tells the answers apart."""
    llm, fresh = full(), full()
    greedy(llm, DOCUMENT[:-7] + QUESTIONS[0], N_ANSWER)
    tokens = DOCUMENT[:-7] + QUESTIONS[1]
    for target in (llm, fresh):
        target.prefill(tokens)
        target.eval(QUESTIONS[2])
    assert llm.last_prefill.reused_tokens == 153 and llm.last_prefill.selected == fresh.last_prefill.selected
    np.testing.assert_allclose(logits(llm), logits(fresh), atol=0.1)


def test_prompts_that_fit_the_budget(full):
    """They are evaluated as ever, share their start as ever, and leave what was kept."""
    llm = full()
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    n_bytes = llm.last_prefill.full_kv_bytes
    for question, n_reused in ((0, 0), (1, 48)):
        answer = greedy(llm, OTHER[:48] + QUESTIONS[question])
        assert answer == greedy(full(), OTHER[:48] + QUESTIONS[question])
        report = llm.last_prefill
        assert (report.pruned, report.reused_tokens, report.full_kv_bytes) == (False, n_reused, n_bytes)
    check_alone(llm, full(), DOCUMENT + QUESTIONS[1], len(DOCUMENT))


def test_a_long_prompt_that_is_kept_whole(full):
    """Longer ones that go on from it, and then need pruning, find it."""
    llm = full(asl_budget=272, asl_decode_ctx=512)
    tokens = prompt(256)
    greedy(llm, tokens, N_ANSWER)
    assert not llm.last_prefill.pruned and llm.last_prefill.full_kv_bytes > 0
    tokens = tokens + prompt(288, seed=1)
    fresh = full(asl_budget=272, asl_decode_ctx=512)
    for target in (llm, fresh):
        target.prefill(tokens)
    report, expected = llm.last_prefill, fresh.last_prefill
    assert report.reused_tokens == 256 and report.pruned
    # the layers after the selection had all tokens in sight as well, as in the prompt before
    assert (report.selected, report.rows_by_layer) == (expected.selected, expected.rows_by_layer)
    assert report.token_layers == 288 * N_LAYER


def test_too_few_cells_are_said_before_any_work(full):
    """The object is as it was: the next turn finds the last prompt."""
    calls: list[int] = []
    llm = full(asl_budget=200, asl_decode_ctx=256, asl_progress=lambda *call: calls.append(call))
    tokens = prompt(240)
    complete(llm, tokens, N_ANSWER)
    calls.clear()
    with pytest.raises(ContextFullError, match="expected at most 256 KV cells.*got 200.*57.*asl_decode_ctx=512"):
        complete(llm, tokens + QUESTIONS[0], 57)
    assert not calls
    assert complete(llm, tokens + QUESTIONS[0], 56)["usage"]["completion_tokens"] == 56
    assert llm.last_prefill.reused_tokens == len(tokens)


def test_an_abandoned_stream(full):
    llm = full()
    stream = complete(llm, DOCUMENT + QUESTIONS[0], 50, stream=True)
    next(stream)
    next(stream)
    stream.close()
    check_alone(llm, full(), DOCUMENT + QUESTIONS[1], len(DOCUMENT))


@pytest.mark.parametrize("at", [1, 3, 11])
def test_a_cancelled_prefill(full, at):
    """The question's two chunks through 6 layers: 12 calls."""
    left = [1000]

    def progress(done: int, total: int) -> bool:
        left[0] -= 1
        return left[0] > 0

    llm = full(asl_progress=progress)
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    left[0] = at
    with pytest.raises(PrefillCancelled):
        greedy(llm, DOCUMENT + QUESTIONS[1])
    left[0] = 1000
    check_alone(llm, full(), DOCUMENT + QUESTIONS[2], len(DOCUMENT))


def test_another_document_takes_the_place_of_the_one_before(full):
    """As it runs, not after it: there is never K/V of two."""
    held: list[int] = []
    llm = full(asl_progress=lambda done, total: held.append(llm._sequence.host.n_bytes))
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    del held[:]
    check_alone(llm, full(), OTHER, 0)
    assert held and not any(held)
    del held[:]
    check_alone(llm, full(), OTHER + QUESTIONS[1], len(OTHER))
    assert all(held)


def test_reset_forgets_what_does_not_depend_on_questions_too(full):
    """The weights may have changed: an adapter, a control vector."""
    llm = full()
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    llm.reset()
    assert llm.n_tokens == 0
    check_alone(llm, full(), DOCUMENT + QUESTIONS[1], 0)


def test_protected_tokens_and_the_guard(llm_full):
    options = {"asl_protect": [(20, 40)], "asl_guard": 0.9, "asl_decode_ctx": 512}
    llm, fresh = llm_full(**options), llm_full(**options)
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    tokens = DOCUMENT + QUESTIONS[1]
    assert greedy(llm, tokens, N_ANSWER) == greedy(fresh, tokens, N_ANSWER) and same_cells(llm, fresh)
    report, expected = llm.last_prefill, fresh.last_prefill
    assert report.reused_tokens == len(DOCUMENT) and len(report.guard_attempts) > 0
    assert (report.guard_attempts, report.kept_tokens) == (expected.guard_attempts, expected.kept_tokens)
    assert report.protected_tokens == 20 and set(range(20, 40)) <= set(report.selected or range(40))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_history_does_not_matter(full, seed):
    """Whatever was asked before, a prompt that is pruned answers as on a fresh object."""
    rng, llm, tokens, answer = np.random.default_rng(seed), full(asl_decode_ctx=512), DOCUMENT, []
    for step in range(7):
        action = str(rng.choice(["turn", "question", "document", "short", "reset"]))
        if action == "reset":
            llm.reset()
        elif action == "short":
            tokens, answer = OTHER[:48], greedy(llm, OTHER[:48], N_ANSWER)
        else:
            start = {"turn": tokens + answer, "question": tokens[:-32], "document": DOCUMENT[:96]}[action]
            tokens = start + prompt(96, seed=step)
            with closing(full(asl_decode_ctx=512)) as fresh:
                answer = greedy(llm, tokens, N_ANSWER)
                assert answer == greedy(fresh, tokens, N_ANSWER) and llm.last_prefill.pruned, (step, action)
                assert same_cells(llm, fresh), (step, action)


# what outlives an object, and what it refuses


def test_saved_states(full, tmp_path):
    """The object that saved one selects again, and so does one that read the file; one that has only the state goes on from it."""
    llm, other = full(), full()
    tokens = DOCUMENT + QUESTIONS[0]
    answer = greedy(llm, tokens, N_ANSWER)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    llm.save_prompt(tmp_path / "prompt")
    turn = tokens + answer + QUESTIONS[1]
    other.load_state(state)
    greedy(other, turn, 1)
    assert other.last_prefill.reason == "the start of the prompt was in the cache"
    assert other.last_prefill.reused_tokens == len(tokens) + N_ANSWER - 1
    other.load_prompt(tmp_path / "prompt")
    check_alone(other, full(), turn, len(tokens))
    greedy(llm, OTHER[:64])
    llm.load_state(state)
    check_alone(llm, full(), turn, len(tokens))


@pytest.mark.parametrize("ours", [False, True])
def test_states_of_the_other_setting_are_refused(llm_full, ours):
    llm, other = llm_full(asl_full_kv=ours), llm_full(asl_full_kv=not ours)
    llm.prefill(OTHER)
    with pytest.raises(StateError, match=f"asl_full_kv {not ours}.*got .*{ours}"):
        other.load_state(llm.save_state())


@pytest.mark.parametrize("duplicate", [copy.copy, lambda llm: pickle.loads(pickle.dumps(llm))], ids=["copy", "pickle"])
def test_copies_have_the_option_and_memory_of_their_own(llm_full, duplicate):
    llm = llm_full()
    greedy(llm, DOCUMENT + QUESTIONS[0], N_ANSWER)
    with closing(duplicate(llm)) as other:
        check_alone(other, llm_full(), DOCUMENT + QUESTIONS[1], 0)
        check_alone(other, llm_full(), DOCUMENT + QUESTIONS[2], len(DOCUMENT))
    check_alone(llm, llm_full(), DOCUMENT + QUESTIONS[3], len(DOCUMENT))


def test_close_gives_the_memory_back(llm_full):
    llm = llm_full()
    llm.prefill(DOCUMENT)
    assert llm._sequence.host.n_bytes == llm.last_prefill.full_kv_bytes > 0
    llm.close()
    assert llm._sequence.host.n_bytes == 0


@pytest.mark.parametrize("value", [None, 1, 0, "yes", "Q8_0", "f16", [True]])
def test_other_values_are_errors(tiny_model, value):
    for budget in (0.2, None):
        with pytest.raises(OptionError, match=r"asl_full_kv: expected True, False or one of q8_0, got "):
            Llama(str(tiny_model("llama")), asl_budget=budget, asl_full_kv=value)


def test_without_a_budget_it_is_an_error(make):
    with pytest.raises(OptionError, match="asl_full_kv: expected asl_budget with it, got None"):
        make(asl_full_kv=True)
    greedy(make(asl_full_kv=False), DOCUMENT, 1)


def test_times_are_not_predicted(make):
    with pytest.raises(OptionError, match="asl_full_kv: expected a budget in tokens, .*, got ttft:5s"):
        make(asl_full_kv=True, asl_budget="ttft:5s")
    assert make(asl_full_kv=True, asl_budget="fit:64MiB").prefill(OTHER).budget_choice.startswith("fit:64MiB: ")


@pytest.mark.parametrize("architecture", UNPRUNABLE)
def test_a_model_that_cannot_be_pruned_says_so(make, architecture):
    with pytest.warns(PruningDisabledWarning, match="not pruning: "):
        llm = make(architecture=architecture, **SHARED, asl_full_kv=True)
    plain = make(architecture=architecture, n_batch=CHUNK, n_ubatch=CHUNK)
    assert greedy(llm, DOCUMENT) == greedy(plain, DOCUMENT) and llm.n_ctx() == N_CTX
    assert (llm.last_prefill.full_kv_bytes, llm.last_prefill.pruned) == (0, False)


@pytest.mark.parametrize("policy", ["gemfilter", "streaming_llm", "pyramidinfer", "asl-two-pass", "none"])
def test_every_other_policy(llm_full, policy):
    """Those that run kept tokens a second time keep nothing, and work; with none, the cells hold the start anyway.

    PyramidInfer's window is a fifth of the tokens, which are computed.
    """
    llm = llm_full(asl_policy=policy)
    for turn, question in enumerate(QUESTIONS[:2]):
        tokens, fresh = DOCUMENT + question, llm_full(asl_policy=policy)
        assert greedy(llm, tokens, N_ANSWER) == greedy(fresh, tokens, N_ANSWER)
        kept = policy not in ("gemfilter", "none")
        assert (llm.last_prefill.full_kv_bytes > 0) == kept
        n_shared = {"gemfilter": 0, "pyramidinfer": len(tokens) - len(tokens) // 5}.get(policy, len(DOCUMENT))
        assert llm.last_prefill.reused_tokens == turn * n_shared
