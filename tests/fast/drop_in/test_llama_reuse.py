"""Prompts that follow each other on one `Llama`: what is reused, and that nothing stale ever is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asl_gguf import PrefillCancelled, PromptError
from asl_gguf.drop_in.llama import Llama
from harness import prompt
from tiny_llama import DOCUMENT, EXCLAIM, QUESTIONS, cells, chat, complete, greedy, logits, n_kept


def count_decoded(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, the tokens of every llama_decode call of the object."""
    sizes: list[int] = []
    decode = llm._ctx.decode

    def counted(batch: Any) -> None:
        sizes.append(batch.batch.n_tokens)
        decode(batch)

    monkeypatch.setattr(llm._ctx, "decode", counted)
    return sizes


def test_the_next_chat_turn_decodes_its_own_tokens(make, options, monkeypatch):
    calls = []
    llm = make(asl_progress=lambda *call: calls.append(call), **options)
    messages = chat("a" * 100)
    n_before = 0
    for turn in range(4):
        n_calls, sizes = len(calls), count_decoded(llm, monkeypatch)
        found = llm.create_chat_completion(messages, max_tokens=6, temperature=0.0, logit_bias=EXCLAIM)
        report = llm.last_prefill
        assert found["choices"][0]["message"]["content"] == "!" * 6
        if turn == 0:
            assert report.pruned and calls and report.reused_tokens == 0
            assert sizes == [1] * 5
        else:
            # the turn before left its prompt and all but the last token of its answer
            assert report.reused_tokens == n_before + 5
            assert len(calls) == n_calls, "a second prefill"
            assert sizes[0] == report.prompt_tokens - report.reused_tokens and sizes[1:] == [1] * 5
            assert report.kept_tokens == len(cells(llm).positions) - 5
            assert report.reason == "the start of the prompt was in the cache" and report.pruned
        n_before = report.prompt_tokens
        messages += [{"role": "assistant", "content": "!" * 6}, *chat(f"And {turn}?")]


def test_a_turn_continues_the_pruned_cache(make, options):
    """Its answer is that of llama.cpp decoding the turn on the pruned cells."""
    llm, other = make(**options), make(**options)
    first = greedy(llm, DOCUMENT)
    assert greedy(other, DOCUMENT) == first
    turn = [*DOCUMENT, *first, *QUESTIONS[0]]
    answer = greedy(llm, turn)
    other.eval([first[-1], *QUESTIONS[0]])  # the last token was sampled, not evaluated
    by_hand = [int(logits(other).argmax())]
    while len(by_hand) < len(answer):
        other.eval(by_hand[-1:])
        by_hand.append(int(logits(other).argmax()))
    assert answer == by_hand
    assert np.array_equal(logits(llm), logits(other))


def test_another_question_about_the_same_document(make, options):
    llm = make(**options)
    for question in (0, 1, 0, 2):
        tokens = DOCUMENT + QUESTIONS[question]
        answer = greedy(llm, tokens)
        assert answer == greedy(make(**options), tokens), question
        assert llm.last_prefill.reused_tokens == 0 and llm.last_prefill.kept_tokens == n_kept(len(tokens))


def test_the_same_prompt_again(make, options):
    llm = make(**options)
    answers = [greedy(llm, DOCUMENT, n_tokens) for n_tokens in (8, 8, 1, 8)]
    assert answers == [answers[0], answers[0], answers[0][:1], answers[0]]
    assert llm.last_prefill.reused_tokens in (0, len(DOCUMENT)) and llm.last_prefill.kept_tokens == n_kept(
        len(DOCUMENT)
    )


@pytest.mark.parametrize("n_tokens", [len(DOCUMENT) - 1, len(DOCUMENT) + 3, 100, 60])
def test_a_prompt_that_ends_inside_the_cached_one(make, options, n_tokens):
    llm = make(**options)
    longer = DOCUMENT + greedy(llm, DOCUMENT)
    tokens = longer[:n_tokens]
    assert greedy(llm, tokens) == greedy(make(**options), tokens)
    assert llm.last_prefill.reused_tokens == 0
    assert llm.last_prefill.kept_tokens == (60 if n_tokens == 60 else n_kept(n_tokens))  # 60 fit the budget


def test_a_long_turn_is_pruned_over_what_is_kept(make, options):
    llm = make(asl_decode_ctx=256, **options)
    past = DOCUMENT + greedy(llm, DOCUMENT)
    turn = past + prompt(200, seed=5)
    answer = greedy(llm, turn)
    report = llm.last_prefill
    n_new = len(turn) - report.reused_tokens
    assert report.reused_tokens in (len(past) - 1, len(past))  # the last token was sampled, not evaluated
    assert report.turns == ((len(DOCUMENT), n_kept(len(DOCUMENT))), (n_new, n_kept(n_new)))
    cells = n_kept(len(DOCUMENT)) + report.reused_tokens - len(DOCUMENT) + n_kept(n_new)
    assert report.kept_tokens == cells and report.prompt_tokens == len(turn) and report.pruned
    assert all(rows == cells for rows in report.rows_by_layer) and report.reason is None
    assert min(report.selected, default=report.reused_tokens) >= report.reused_tokens
    assert greedy(llm, turn + answer) and llm.last_prefill.turns == report.turns  # goes on from it


def test_a_turn_that_outgrows_the_cells(make, options):
    llm = make(asl_decode_ctx=256, **options)
    turn = DOCUMENT + greedy(llm, DOCUMENT) + prompt(478, seed=5)
    answer = greedy(llm, turn)
    report = llm.last_prefill
    assert (report.reused_tokens, report.kept_tokens) == (0, n_kept(len(turn)))
    assert answer == greedy(make(asl_decode_ctx=256, **options), turn)


def test_room_for_the_answer_counts(make, options):
    """40 more tokens fit the cells; 40 more and an answer of 155 do not."""
    for n_answer, reused in ((8, True), (155, False)):
        llm = make(asl_decode_ctx=256, **options)
        turn = DOCUMENT + greedy(llm, DOCUMENT) + QUESTIONS[0]
        assert complete(llm, turn, n_answer)["usage"]["completion_tokens"] == n_answer
        assert (llm.last_prefill.reused_tokens > 0) == reused


def test_short_prompts_share_their_start(make, stock, options, monkeypatch):
    """Nothing was pruned, so any prompt with the same start may use it, as in stock."""
    llm, theirs = make(**options), stock()
    start = prompt(40)
    for question in QUESTIONS:
        sizes = count_decoded(llm, monkeypatch)
        assert greedy(llm, start + question) == greedy(theirs, start + question)
        assert sizes[0] == (80 if question is QUESTIONS[0] else 40)
        assert llm.last_prefill.reused_tokens == 80 - sizes[0]


def test_a_long_prompt_after_a_short_one_with_its_start(make, options):
    """The document goes on from a shorter question about its beginning: it is pruned, not appended."""
    llm = make(**options)
    greedy(llm, DOCUMENT[:70])
    assert greedy(llm, DOCUMENT) == greedy(make(**options), DOCUMENT)
    assert llm.last_prefill.kept_tokens == n_kept(len(DOCUMENT))


@pytest.mark.parametrize("seed", range(3))
def test_history_does_not_matter(make, options, seed):
    """Whatever was asked, refused or cancelled before, a chain of turns answers as on a fresh object."""
    rng = np.random.default_rng(seed)
    cancel = {"now": False}
    llm = make(asl_decode_ctx=512, asl_progress=lambda *_: not cancel["now"], **options)
    chain: list[list[int]] = []
    answer: list[int] = []
    for step in range(9):
        action = rng.choice(["document", "short", "turn", "too-long", "cancel"], p=[0.25, 0.15, 0.4, 0.1, 0.1])
        if action == "too-long":
            with pytest.raises(PromptError):
                greedy(llm, prompt(1024))
            continue
        if action == "cancel":
            cancel["now"] = True
            with pytest.raises(PrefillCancelled):
                greedy(llm, prompt(100, seed=step))
            cancel["now"], chain = False, []
            continue
        if action == "turn" and chain:
            tokens = chain[-1] + answer + prompt(12, seed=step)
        else:
            chain = []
            parts = [(150 if action == "document" else 50, rng.integers(3)), (9, rng.integers(3))]
            tokens = [token for n_tokens, part in parts for token in prompt(n_tokens, seed=int(part))]
        chain.append(tokens)
        answer = greedy(llm, tokens, 5)
        fresh = make(asl_decode_ctx=512, **options)
        expected = [greedy(fresh, turn, 5) for turn in chain][-1]
        assert answer == expected, (step, action, len(chain))
        assert (llm.last_prefill.reused_tokens > 0) or len(chain) == 1
        fresh.close()


def test_an_abandoned_stream(make, options):
    llm = make(**options)
    stream = complete(llm, DOCUMENT, 50, stream=True)
    next(stream)
    next(stream)
    stream.close()
    assert greedy(llm, DOCUMENT + QUESTIONS[0]) == greedy(make(**options), DOCUMENT + QUESTIONS[0])


def test_max_tokens_of_one_call_does_not_reach_the_next(make, options):
    """generate has no limit of its own, even if a completion with one was refused just before."""
    llm = make(asl_decode_ctx=256, **options)
    with pytest.raises(PromptError):
        complete(llm, prompt(1100), 900)
    greedy(llm, DOCUMENT, 1)
