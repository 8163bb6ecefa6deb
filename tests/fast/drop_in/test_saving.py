"""States, caches, prompt files and copies of a `Llama`: what comes back is what was there, for the same settings only."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest

from asl_gguf import StateError, UnaskedWarning
from asl_gguf.cache.fingerprint import describe, settings_digest
from asl_gguf.engine.plan import UNASKED
from asl_gguf.policies import PyramidInfer, SnapKV, StreamingLLM
from harness import prompt
from tiny_llama import DOCUMENT, QUESTIONS, SETTLES, TEXT, cells, greedy, logits, n_kept

OTHER = prompt(200, seed=9)
PLAIN = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": SnapKV()}
"""where the policy does not matter"""


def same_cells(one: Any, other: Any) -> bool:
    a, b = cells(one), cells(other)
    return all(np.array_equal(value, getattr(b, name)) for name, value in vars(a).items())


@pytest.mark.parametrize("n_document", [150, 70], ids=["pruned", "whole"])
def test_state_round_trip(make, options, n_document):
    """Into the same object after another prompt, and into a new one: cells and next logits bit for bit."""
    llm, other = make(**options), make(**options)
    document = DOCUMENT[:n_document]
    document = document + greedy(llm, document)
    state = llm.save_state()
    expected_logits = logits(llm)
    turn = document + QUESTIONS[0]
    expected = greedy(llm, turn)
    assert llm.last_prefill.reused_tokens == len(document) - 1
    greedy(llm, OTHER)
    for target in (llm, other):
        target.load_state(state)
        assert target.n_tokens == len(document) - 1
        assert np.array_equal(logits(target), expected_logits)
        assert greedy(target, turn) == expected
        assert target.last_prefill.reused_tokens == len(document) - 1
        target.load_state(state)
        # a state of another question's pruning is never served
        stale = document[:-20] + QUESTIONS[1]
        assert greedy(target, stale) == greedy(make(**options), stale)


def test_the_next_token_needs_no_evaluation(make, options):
    """After prefill() and a round trip, the same prompt is answered from the saved logits."""
    llm, other = make(**options), make(**options)
    llm.prefill(DOCUMENT)
    other.load_state(pickle.loads(pickle.dumps(llm.save_state())))
    assert same_cells(llm, other)
    llm.last_prefill = other.last_prefill = None
    assert greedy(other, DOCUMENT) == greedy(llm, DOCUMENT) == greedy(make(**options), DOCUMENT)
    assert other.last_prefill.reused_tokens == len(DOCUMENT)


def test_a_state_is_small(make, stock):
    """Kept cells and one row of logits; the parent's has a row of logits per token of a batch."""
    llm, parent = make(**PLAIN), stock()
    for target in (llm, parent):
        greedy(target, DOCUMENT, 1)
    ours, theirs = (len(pickle.dumps(target.save_state())) for target in (llm, parent))
    kv_bytes = llm.last_prefill.kv_bytes_prompt
    assert kv_bytes < ours < 1.1 * kv_bytes + 4 * llm.n_vocab() + 20_000
    assert ours < theirs / 2


def test_the_answers_last_token_belongs_to_the_state(make):
    """It was given out but not evaluated: a prompt with another one does not go on from the answer."""
    llm, other = make(**PLAIN), make(**PLAIN)
    document = DOCUMENT + greedy(llm, DOCUMENT)
    other.load_state(llm.save_state())
    changed = document[:-1] + [(document[-1] + 1) % 300 + 10] + QUESTIONS[0]
    assert greedy(other, changed) == greedy(make(**PLAIN), changed)
    assert other.last_prefill.reused_tokens == 0


def test_rows_that_differ_by_layer(make):
    options = {"asl_budget": 80, "asl_policy": PyramidInfer(min_context=12)}
    llm, other = make(**options), make(**options)
    document = DOCUMENT + greedy(llm, DOCUMENT)
    other.load_state(pickle.loads(pickle.dumps(llm.save_state())))
    assert greedy(other, document + QUESTIONS[0]) == greedy(llm, document + QUESTIONS[0])


CHANGES = {
    "asl_budget": {"asl_budget": 0.5},
    "asl_policy": {"asl_policy": SnapKV(window=8)},
    "asl_protect": {"asl_protect": [(0, 5)]},
    "asl_guard": {"asl_guard": 0.1},
    "type_k": {"type_k": 0},
    "flash_attn_type": {"flash_attn": True},
    "rope_freq_base": {"rope_freq_base": 20000.0},
    "model file": {"architecture": "qwen2"},
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("way", ["state", "file"])
def test_other_settings_are_refused(make, name, way, tmp_path):
    """And the object that was asked stays as it was."""
    llm, other = make(**PLAIN), make(**(PLAIN | CHANGES[name]))
    llm.prefill(DOCUMENT)
    document = OTHER + greedy(other, OTHER)
    with pytest.raises(StateError, match=f"expected a state with .*{name} .*got "):
        if way == "state":
            other.load_state(llm.save_state())
        else:
            llm.save_prompt(tmp_path / "prompt")
            other.load_prompt(tmp_path / "prompt")
    greedy(other, document + QUESTIONS[0])
    assert other.last_prefill.reused_tokens == len(document) - 1


def test_stock_states_are_refused_and_ours_by_stock(make, stock):
    llm, parent, plain = make(**PLAIN), stock(), make()
    greedy(parent, DOCUMENT, 1)
    llm.prefill(DOCUMENT)
    with pytest.raises(StateError, match="expected a state saved with pruning, got one saved without"):
        llm.load_state(parent.save_state())
    with pytest.raises(StateError, match="expected a state saved without pruning, got one saved with"):
        plain.load_state(llm.save_state())
    with pytest.raises(ValueError):  # its shape of scores: stock would reuse K/V chosen for one question
        parent.load_state(llm.save_state())
    plain.load_state(parent.save_state())
    assert plain.n_tokens == len(DOCUMENT)


def test_a_state_that_llama_cpp_refuses(make, options):
    llm = make(**options)
    llm.prefill(DOCUMENT)
    state = llm.save_state()
    state.llama_state = state.llama_state[: len(state.llama_state) // 2]
    with pytest.raises(StateError, match="llama.cpp refuses the one of 150 tokens"):
        llm.load_state(state)
    assert llm.n_tokens == 0
    assert greedy(llm, DOCUMENT) == greedy(make(**options), DOCUMENT)


def test_a_state_longer_than_n_ctx(make):
    llm, short = make(**PLAIN), make(n_ctx=256, **PLAIN)
    llm.prefill(prompt(300))
    with pytest.raises(StateError, match="expected at most n_ctx = 256 tokens, got a state of 300"):
        short.load_state(llm.save_state())


# prompt files


def test_a_prompt_file(make, options, tmp_path):
    llm, other = make(**options), make(**options)
    report = llm.prefill(DOCUMENT)
    assert report.pruned and report.kept_tokens == n_kept(len(DOCUMENT))
    llm.save_prompt(tmp_path / "document.asl")
    turn = DOCUMENT + QUESTIONS[0]
    expected = greedy(llm, turn)
    assert other.load_prompt(str(tmp_path / "document.asl")) == DOCUMENT
    assert greedy(other, turn) == expected
    assert other.last_prefill.reused_tokens == len(DOCUMENT)
    # and nothing else
    assert greedy(other, DOCUMENT[:-5]) == greedy(make(**options), DOCUMENT[:-5])
    assert other.last_prefill.reused_tokens == 0
    assert [path.name for path in tmp_path.iterdir()] == ["document.asl"]


def test_a_prompt_file_holds_no_pickle(make, tmp_path):
    llm = make(**PLAIN)
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "prompt")
    with np.load(tmp_path / "prompt", allow_pickle=False) as arrays:
        assert {name: array.dtype.kind for name, array in arrays.items()} == {
            "about": "u",
            "tokens": "i",
            "first_cells": "i",
            "logits": "f",
            "cells": "u",
        }
        assert json.loads(arrays["about"].tobytes())["kind"] == "asl_gguf prompt"


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "text", "pickle", "other"])
def test_a_damaged_file(make, tmp_path, damage):
    llm = make(**PLAIN)
    llm.prefill(DOCUMENT)
    path = tmp_path / "prompt"
    llm.save_prompt(path)
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("no prompt")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"about": 1}))
    else:
        with path.open("wb") as file:
            np.savez(file, about=np.frombuffer(b'{"kind": "x", "format": 1}', np.uint8))
    with pytest.raises(StateError, match=f"expected a prompt saved by save_prompt in {re.escape(str(path))}, got"):
        llm.load_prompt(path)
    greedy(llm, DOCUMENT + QUESTIONS[0])
    assert llm.last_prefill.reused_tokens == len(DOCUMENT)


def test_a_state_before_the_first_prompt(make, options):
    """As llama_cpp's: loading it forgets what was evaluated since."""
    llm = make(asl_full_kv=True, **options)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    expected = greedy(llm, DOCUMENT + QUESTIONS[0])
    greedy(llm, DOCUMENT + QUESTIONS[1])
    llm.load_state(state)
    assert llm.n_tokens == 0
    assert greedy(llm, DOCUMENT + QUESTIONS[0]) == expected
    llm.reset()
    assert llm.save_state().n_tokens == 0


def test_nothing_to_save(make, tmp_path):
    for llm in (make(**PLAIN), make()):
        with pytest.raises(StateError, match="expected an evaluated prompt on a Llama with asl_budget"):
            llm.save_prompt(tmp_path / "prompt")


def test_a_failed_save_leaves_the_file(make, tmp_path, monkeypatch):
    llm = make(**PLAIN)
    llm.prefill(DOCUMENT)
    path = tmp_path / "prompt"
    path.write_text("precious")
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        llm.save_prompt(path)
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


# copies


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_copies(make, duplicate):
    """A copy has the settings and a context of its own, like the parent's."""
    llm = make(asl_decode_ctx=300, asl_protect=[re.compile("x"), (0, 3)], **PLAIN)
    greedy(llm, OTHER)
    with contextlib.closing(duplicate(llm)) as other:
        assert (other.n_ctx(), other.n_cells, other.n_tokens) == (llm.n_ctx(), llm.n_cells, 0)
        assert other.ctx != llm.ctx
        for tokens in (DOCUMENT, DOCUMENT[:120]):
            assert greedy(other, tokens) == greedy(llm, tokens)
            assert other.last_prefill.kept_tokens == llm.last_prefill.kept_tokens
        greedy(llm, DOCUMENT)
        other.load_state(llm.save_state())


def test_reset_forgets(make):
    llm = make(**PLAIN)
    document = DOCUMENT + greedy(llm, DOCUMENT)
    llm.reset()
    turn = document + QUESTIONS[0]
    assert greedy(llm, turn) == greedy(make(**PLAIN), turn)
    assert llm.last_prefill.reused_tokens == 0


def test_settings_in_words():
    """Equal for equal settings in every process: no addresses, no order of a set."""

    class Mine:
        pass

    assert describe([StreamingLLM(), (1, "a"), re.compile("x", re.I), None]) == (
        "[StreamingLLM(window=1, n_sink=4), [1, 'a'], 'x' with flags 34, None]"
    )
    assert describe(Mine()) == describe(Mine()) and "0x" not in describe(Mine())
    assert len({settings_digest({"a": str(i)}) for i in range(100)}) == 100
    assert settings_digest({"a": "1", "b": "2"}) == settings_digest({"b": "2", "a": "1"})


def test_settings_do_not_depend_on_the_process(make):
    assert describe(make(asl_policy=SETTLES, asl_budget=0.4)._asl.policy).startswith("SpanASL(")
    origins = [make(**PLAIN)._asl_fingerprint for _ in range(2)]
    assert origins[0] == origins[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print(origins[0])
    assert "0x" not in out.getvalue()


# questions that were not known


@pytest.mark.parametrize("way", ["prefill", "file"])
def test_a_question_that_was_not_known_is_announced(make, tmp_path, way):
    """What it goes on from was chosen by the document's own last tokens. With K/V of all tokens it chooses again."""
    plain, full = make(**PLAIN), make(**PLAIN, asl_full_kv=True)
    for llm in (plain, full):
        llm.prefill(DOCUMENT)
        if way == "file":
            llm.save_prompt(tmp_path / "prompt")
            llm.reset()
            llm.load_prompt(tmp_path / "prompt")
    with pytest.warns(UnaskedWarning, match="chosen before it was known.*asl_full_kv=True"):
        greedy(plain, turn := DOCUMENT + QUESTIONS[0])
    assert plain.last_prefill.reason == UNASKED and plain.last_prefill.reused_tokens == len(DOCUMENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert greedy(full, turn) == greedy(make(**PLAIN), turn)  # as if it had been asked at once
        assert "selected again" in full.last_prefill.reason and full.last_prefill.reused_tokens > 0


def test_what_was_known_is_not_announced(make):
    """The prompt itself, turns after an answer, another prompt."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm = make(**PLAIN)
        llm.prefill(DOCUMENT)
        answered = DOCUMENT + greedy(llm, DOCUMENT)
        greedy(make(**PLAIN), answered + QUESTIONS[0])
        llm.prefill(DOCUMENT)
        greedy(llm, OTHER)
        greedy(llm, OTHER + greedy(llm, OTHER) + QUESTIONS[0])


def test_a_long_turn_is_announced_too(make):
    """Its own tokens are pruned, over K/V that it did not choose; so are those of the turn after it."""
    llm = make(**PLAIN)
    llm.prefill(DOCUMENT)
    for turn in (DOCUMENT + prompt(200, seed=5), DOCUMENT + prompt(200, seed=5) + prompt(200, seed=6)):
        with pytest.warns(UnaskedWarning):
            llm.prefill(turn)
        assert llm.last_prefill.reused_tokens > 0 and len(llm.last_prefill.turns) > 1


def test_a_chat_is_prefilled_ahead(make):
    """Messages become what their template makes of them; a question about them shares their start."""
    llm = make(**PLAIN, asl_full_kv=True)
    report = llm.prefill([{"role": "user", "content": TEXT[:300]}])
    assert llm.n_tokens == report.prompt_tokens > 150 and report.pruned and llm._text.sampled is None
    messages = [{"role": "user", "content": f"{TEXT[:300]}\n\nWho wrote?"}]
    answer = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)
    assert llm.last_prefill.reused_tokens > 120
    again = make(**PLAIN).create_chat_completion(messages, max_tokens=8, temperature=0.0)
    assert answer["choices"][0]["message"] == again["choices"][0]["message"]


@pytest.mark.parametrize("architecture", ["gemma3", "gpt-oss"])
@pytest.mark.parametrize("n_common", [40, 51, 60, 90])
def test_a_step_back_behind_the_windows_of_a_loaded_prompt(make, tmp_path, architecture, n_common):
    """Later tokens took the cells before the windows: a prompt that needs them begins anew."""
    options = {
        "architecture": architecture,
        "asl_budget": 0.5,
    }  # shorter prompts than asl_min_prompt: nothing is pruned
    tokens = prompt(150, seed=4)
    first, loaded = make(**options), make(**options)
    greedy(first, tokens[:100], 1)
    first.save_prompt(tmp_path / "prompt.asl")
    loaded.load_prompt(tmp_path / "prompt.asl")
    greedy(loaded, tokens, 1)
    other = [*tokens[:n_common], tokens[n_common] ^ 1, *prompt(20, seed=5)]
    assert greedy(loaded, other) == greedy(make(**options), other)
    fresh, back = make(**options), make(**options)
    back.load_prompt(tmp_path / "prompt.asl")
    for llm, before in ((fresh, []), (back, tokens)):
        if before:
            greedy(llm, before, 1)
        greedy(llm, other, 1)
    np.testing.assert_allclose(logits(back), logits(fresh), atol=5e-3)
