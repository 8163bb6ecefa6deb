"""`Llama` on models with recurrent states or shared K/V: what turns, saved prompts, states and `reset` do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, ModelError, OptionError, StateError
from harness import llama_cpp
from tiny_kinds import write_kind
from tiny_llama import greedy, logits

KINDS = ("delta-net", "mamba", "mamba2-beside", "short-conv", "kda", "lightning", "shared-kv", "streams")
WITHOUT_STATES = ("shared-kv", "streams")
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "n_batch": 64}
PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 40, "asl_policy": "snapkv"}
N_TOKENS = 120


def prompt(seed: int = 0, n_tokens: int = N_TOKENS) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(3, 128, n_tokens).tolist()


@pytest.fixture(scope="module", params=KINDS)
def path(request, tmp_path_factory) -> Iterator[str]:
    file = write_kind(tmp_path_factory.mktemp("kinds") / f"{request.param}.gguf", request.param)
    yield str(file)
    file.unlink()


def opened(path: str, cls: type = Llama, **options: Any) -> Any:
    options = {**(PRUNED if cls is Llama else {"verbose": False}), **options}
    return closing(cls(path, **OPTIONS, **options))


@cache
def _fresh(path: str, tokens: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
    with opened(path) as llm:
        return greedy(llm, list(tokens)), logits(llm)


def fresh(path: str, tokens: list[int]) -> tuple[list[int], np.ndarray]:
    """The answer of an object that knows no prompt."""
    return _fresh(path, tuple(tokens))


@pytest.mark.long
def test_a_prompt_after_others(path):
    """And after one that was given up in the middle of its answer, and after reset: no state is left of them."""
    with opened(path) as llm:
        greedy(llm, prompt(1))
        stream = llm.generate(prompt(2), temp=0.0)
        next(stream), next(stream)
        for tokens in (prompt(), prompt()[:90] + prompt(3)[:40]):
            expected = fresh(path, tokens)
            for reset in (False, True):
                if reset:
                    llm.reset()
                answer = greedy(llm, tokens)
                assert answer == expected[0] and np.array_equal(logits(llm), expected[1])
                assert llm.last_prefill.pruned and llm.last_prefill.reused_tokens in (0, len(tokens))


@pytest.mark.filterwarnings("ignore::asl_gguf.PruningDisabledWarning")
@pytest.mark.parametrize("budget", [0.4, None])
def test_tokens_that_are_taken_back_by_hand(path, budget):
    """A state has seen them: an error, not an answer from the tokens that follow alone."""
    goes_back, tokens = Path(path).stem in WITHOUT_STATES, prompt(n_tokens=60)

    def refused() -> Any:
        return nullcontext() if goes_back else pytest.raises(StateError, match="remembers of them cannot be taken back")

    with opened(path, asl_budget=budget, asl_min_prompt=200) as llm:
        expected = greedy(llm, tokens)
        llm.reset()
        llm.eval(tokens)
        llm.n_tokens = 58
        with refused():
            llm.eval([5])
        assert greedy(llm, tokens) == expected
        llm.n_tokens = 58
        with refused() if budget else nullcontext():  # the parent's state has the cells of all
            llm.save_state()
        assert greedy(llm, tokens) == expected
    with opened(path, asl_budget=budget, logits_all=True) as llm:
        stream = llm.generate(tokens, temp=0.0)
        next(stream)
        with refused():
            for _ in range(4):
                stream.send([3, 4])  # which the model would not say
        assert greedy(llm, tokens) == expected


@pytest.mark.long
def test_nothing_is_printed(path, capfd):
    """llama.cpp warns of gaps between positions, and llama_cpp prints it."""
    with opened(path, asl_policy="fastkv:tsp_layer=1") as llm:
        capfd.readouterr()
        llm.prefill(prompt(n_tokens=200))
        llm.prefill(prompt(n_tokens=200) + prompt(5, 200))
        assert llm.last_prefill.turns[1][0] == 200 and "find_slot" not in capfd.readouterr().err


def test_a_short_turn_goes_on_from_the_state(path):
    """It is decoded: its tokens after what was kept and answered, and no earlier token runs again."""
    turn = prompt(4, 50)
    with opened(path) as llm, opened(path) as other:
        answer = greedy(llm, prompt())
        whole = prompt() + answer
        found = greedy(llm, whole + turn)
        assert llm.last_prefill.reused_tokens == len(whole) - 1 and llm.last_prefill.pruned
        assert greedy(other, prompt()) == answer
        other.eval(answer[-1:])
        other.eval(turn)
        assert other.sample(temp=0.0) == found[0]


@pytest.mark.long
def test_a_saved_prompt_brings_its_state(path, tmp_path):
    turn = prompt(5, 30)
    with opened(path) as llm:
        llm.prefill(prompt())
        llm.save_prompt(tmp_path / "prompt")
        state = llm.save_state()
        expected = greedy(llm, prompt() + turn)
    with opened(path) as llm:
        for load in (lambda: llm.load_prompt(tmp_path / "prompt"), lambda: llm.load_state(state)):
            greedy(llm, prompt(6))
            load()
            assert greedy(llm, prompt() + turn) == expected and llm.last_prefill.reused_tokens == N_TOKENS
            assert greedy(llm, prompt()) == fresh(path, prompt())[0]


@pytest.mark.long
def test_nothing_pruned_is_the_parents(path):
    turns = [prompt(), prompt() + prompt(7, 30), prompt()[:60], prompt(8)]
    with opened(path, asl_budget=1.0, asl_dequant=False) as llm, opened(path, llama_cpp.Llama) as stock:
        for tokens in turns:
            assert greedy(llm, tokens) == greedy(stock, tokens) and np.array_equal(logits(llm), logits(stock))


def test_a_long_turn_is_pruned_over_what_was_kept(path):
    """Its tokens alone run; a turn after it goes on from all of it, and one that leaves it begins anew."""
    turn = prompt(4, 100)
    with opened(path) as llm:
        whole = prompt() + greedy(llm, prompt())
        answer = greedy(llm, whole + turn)
        report = llm.last_prefill
        assert report.reused_tokens == len(whole) - 1 and report.turns == ((120, 48), (101, 40))
        assert report.kept_tokens == 48 + 7 + 40 and 0 < report.token_layers <= 101 * report.n_layer
        greedy(llm, whole + turn + answer + prompt(5, 20))
        assert llm.last_prefill.reused_tokens >= len(whole) + 100
        assert greedy(llm, prompt()[:90] + turn) == fresh(path, prompt()[:90] + turn)[0]
        assert llm.last_prefill.reused_tokens == 0


@pytest.mark.long
@pytest.mark.parametrize("full_kv", [True, "q8_0"])
def test_every_question_selects_again(path, full_kv, tmp_path):
    """From K/V and states of all tokens, in the same object and in one that loads the file."""
    document, questions = prompt(6, 160), [prompt(seed, 40) for seed in (7, 8)]
    try:
        made = opened(path, asl_full_kv=full_kv)
    except (OptionError, ModelError) as err:  # narrow rows, latent attention
        assert full_kv == "q8_0" and ("whole blocks" in str(err) or "K/V widths" in str(err))
        return
    with made as llm:
        llm.prefill(document)
        llm.save_prompt(tmp_path / "prompt")
        expected = [greedy(llm, document + question) for question in questions]
        assert llm.last_prefill.reused_tokens == 160 and llm.last_prefill.full_kv_bytes > 0
        if full_kv is True:
            assert expected[1] == fresh(path, document + questions[1])[0]
    with opened(path, asl_full_kv=full_kv) as llm:
        llm.load_prompt(tmp_path / "prompt")
        assert greedy(llm, document + questions[0]) == expected[0]
        assert llm.last_prefill.reused_tokens == 160


def test_the_report_tells_states_from_k_v(path):
    """K/V shrink with the budget; states do not, and are not among them. Where no layer runs fewer tokens, it says so."""
    with opened(path) as llm:
        first = llm._asl_session.sliding.index(False)
    with opened(path, asl_policy=f"fastkv:tsp_layer={first}") as llm, opened(path, asl_budget=1.0) as whole:
        for target in (llm, whole):
            greedy(target, prompt(), 1)
        report, other = llm.last_prefill, whole.last_prefill
    assert report.kv_bytes_prompt <= report.kv_bytes_prompt_full * 48 // N_TOKENS < other.kv_bytes_prompt
    assert report.state_bytes == other.state_bytes
    assert (report.state_bytes > 0) is not path.endswith(("shared-kv.gguf", "streams.gguf"))
    assert (
        ("of states" in str(report)) is (report.state_bytes > 0) is any("states MiB" in line for line in report.lines())
    )
    assert report.rows_only is ("lightning" in path) is ("the prefill got no shorter" in str(report))
    assert (report.prefill_share < 1) is not report.rows_only
