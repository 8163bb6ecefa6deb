"""Errors of a user's own code in callbacks and signal handlers reach the caller, whatever stands between."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from asl_gguf import OptionError, StateError
from asl_gguf.policies import SnapKV
from harness import llama_cpp, prompt
from tiny_llama import DOCUMENT, QUESTIONS, complete

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}


class Late(Exception):
    """What a signal handler raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of this kind")
@pytest.mark.parametrize("closes", [False, True])
def test_a_signal_handler_that_raises(make, closes):
    """Timeouts are made so. Before, the prefill took it for a cancelled one, and closing the object there ended the process."""
    llm = make(**PRUNED, n_batch=16, n_ubatch=16)

    def handler(*_: Any) -> None:
        if closes:
            llm.close()
        raise Late

    before = signal.signal(signal.SIGALRM, handler)
    try:
        # a closed object says so where the signal came within llama_cpp's own callback for its log, which drops errors
        with pytest.raises((Late, StateError) if closes else Late):
            while True:
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                llm.reset()
                llm.prefill(prompt(900))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not closes:
        assert complete(llm, DOCUMENT)["choices"] == complete(make(**PRUNED), DOCUMENT)["choices"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of this kind")
@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_a_signal_handler_that_closes_and_returns(make, options):
    """What it came within says so, wherever that was."""
    for seconds in (0.002, 0.01, 0.03):
        llm = make(**options, n_batch=16, n_ubatch=16)
        before = signal.signal(signal.SIGALRM, lambda *_, llm=llm: llm.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with pytest.raises(StateError):
                while True:
                    llm.reset()
                    llm.create_completion(prompt(600), max_tokens=2)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no signals of this kind")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGRTMIN"])
def test_a_signal_handler_that_returns_changes_nothing(make, name):
    """The one after SIGRTMIN is no member of `signal.Signals`."""
    number = int(getattr(signal, name)) + (name == "SIGRTMIN")
    llm, seen = make(**PRUNED, n_batch=16, n_ubatch=16), []
    before = signal.signal(number, lambda *_: seen.append(1))
    try:
        while len(seen) < 3:
            timer = threading.Timer(0.01, lambda: os.kill(os.getpid(), number))
            timer.start()
            llm.reset()
            llm.prefill(prompt(900))
            timer.join()
    finally:
        signal.signal(number, before)
    assert llm.last_prefill.pruned


def test_handlers_of_several_signals_all_run(make):
    """Though the first one raises."""
    llm, seen = make(**PRUNED), []
    session = llm._asl_session

    def first(*_: Any) -> None:
        seen.append("first")
        raise Late

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    signal.signal(signal.SIGINT, first)
    signal.signal(signal.SIGTERM, lambda *_: seen.append("second"))
    try:
        with pytest.raises(Late):
            with session._interruptible():
                for number in before:
                    signal.raise_signal(number)
                assert not seen
        assert seen == ["first", "second"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
def test_a_logits_processor_that_raises(make, options, error):
    """llama_cpp prints it, and answers as if the processor were not there."""
    llm = make(**options)

    def processor(ids: Any, scores: Any) -> Any:
        raise error("mine")

    with pytest.raises(error, match="mine"):
        complete(llm, DOCUMENT, logit_bias=None, logits_processor=llama_cpp.LogitsProcessorList([processor]))
    assert complete(llm, DOCUMENT)["choices"] == complete(make(**options), DOCUMENT)["choices"]


def test_generate_takes_lists_as_they_are(make):
    """At the call, not when the first token is asked for."""
    llm = make(**PRUNED)

    def only(ids: Any, scores: Any) -> Any:
        scores[:] = -1e9
        scores[300] = 0
        return scores

    processors, criteria = llama_cpp.LogitsProcessorList([only]), llama_cpp.StoppingCriteriaList([lambda *_: True])
    tokens = llm.generate(DOCUMENT, logits_processor=processors, stopping_criteria=criteria, temp=0.0)
    processors.clear()
    criteria.clear()
    assert list(tokens) in ([], [300])


def test_a_prompt_of_other_metadata_is_refused(make, tmp_path):
    """kv_overrides change what K/V mean."""
    options = {**PRUNED, "asl_full_kv": True}
    llm = make(**options, kv_overrides={"llama.rope.freq_base": 500.0})
    llm.prefill(DOCUMENT)
    llm.save_prompt(tmp_path / "p")
    with pytest.raises(StateError, match="kv_overrides"):
        make(**options).load_prompt(tmp_path / "p")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_replaced(make, tmp_path):
    llm = make(**PRUNED)
    llm.prefill(DOCUMENT)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected a file or a free name"):
        llm.save_prompt(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    name = "\U0001f600" * 60  # 240 bytes: names are limited in bytes
    llm.save_prompt(tmp_path / name)
    llm.load_prompt(tmp_path / name)


@dataclass(frozen=True)
class Lists(SnapKV):
    """Rows as a list."""

    def start(self, prompt: Any) -> Any:
        observe = super().start(prompt)

        def decide(scores: Any) -> Any:
            from dataclasses import replace

            decision = observe(scores)
            return decision if decision.rows is None else replace(decision, rows=decision.rows.tolist())

        return decide


@dataclass(frozen=True)
class Nothing(SnapKV):
    """Observes nothing."""

    def start(self, prompt: Any) -> Any:
        return None


def test_policies_in_lists_and_of_nothing(make):
    ours, theirs = (make(**PRUNED, asl_policy=policy) for policy in (Lists(), SnapKV()))
    tokens = DOCUMENT + QUESTIONS[0]
    assert complete(ours, tokens)["choices"] == complete(theirs, tokens)["choices"]
    with pytest.raises(OptionError, match="expected start to return an observer, got None"):
        complete(make(**PRUNED, asl_policy=Nothing()), tokens)
