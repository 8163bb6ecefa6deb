"""One question under several policies: over one recorded pass, or each for real."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..budget.rule import ShareRule
from ..budget.targets import BudgetValue
from ..drop_in.llama import Llama
from ..engine.layers import Layers
from ..engine.plan import Plan
from ..engine.replay import RECORD_BYTES, Records, recording_bytes
from ..native.session import Session
from ..policies import Full
from ..report import PrefillReport
from .inspection import Question


@dataclass(frozen=True)
class Answer:
    """A question under one policy."""

    policy: str
    """name and parameters"""
    text: str
    tokens: int
    """of the answer"""
    report: PrefillReport
    prefill_seconds: float | None
    """None: layers came from a record"""
    decode_tokens_per_second: float | None

    @property
    def prefill_share(self) -> float:
        """Share of a full prefill's token-layers that a prefill of its own computes."""
        return self.report.prefill_share if self.report.token_layers else 1.0  # llama.cpp evaluated the prompt

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        report = self.report
        return {
            "policy": self.policy,
            "text": self.text,
            "completion_tokens": self.tokens,
            "prompt_tokens": report.prompt_tokens,
            "kept_tokens": report.kept_tokens,
            "selection_layer": report.selection_layer,
            "n_layer": report.n_layer,
            "prefill_share": self.prefill_share,
            "prefill_seconds": self.prefill_seconds,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "kv_bytes_prompt": report.kv_bytes_prompt,
            "kv_bytes_prompt_full": report.kv_bytes_prompt_full,
            "attention_mass": report.attention_mass,
            "pruned": report.pruned,
            "reason": report.reason,
            "calibration": report.calibration,
        }


class ReplayingLlama(Llama):
    """Runs its first prompt once in full; after that, layers which a policy would leave alone come from the record.

    Everything else is `Llama`: the prompt's tokens, what is kept, the answer. Make it with the policy `none`, so that
    it has cells for every policy, and give it each policy's turn with `use`.
    """

    record_seconds: float | None = None
    """of the full pass; None before it"""
    _records: Records | None = None

    def use(self, policy: str) -> None:
        """The next prompt runs under this policy, calibrated as ever, from its first token on."""
        self._asl = replace(self._asl, given_policy=policy).calibrate(self.model_path)
        self.reset()
        sequence = self._sequence
        if sequence is None:  # the model cannot be pruned
            return
        assert isinstance(sequence.rule, ShareRule)
        sequence.rule = sequence.rule.with_policy(self._asl.policy)
        sequence.policy, sequence.calibration = self._asl.policy, self._asl.calibration
        sequence.source = self._replayed

    def _replayed(self, session: Session, plan: Plan) -> Layers:
        if recording_bytes(session, len(plan.tokens)) > RECORD_BYTES:
            return session  # of a long prompt, hidden states of all layers: each policy runs it by itself
        if self._records is None:
            self._records = Records(session, plan.tokens)
        started = time.perf_counter()
        layers = self._records.replay_for(self._asl.policy, plan.n_kept)
        self.record_seconds = self.record_seconds or time.perf_counter() - started
        return layers


def replayed(question: Question, budget: BudgetValue, policies: Iterable[str]) -> Iterator[Answer]:
    """Answers of all policies, given by name, from one full pass: those of prefills of their own, without their times. Prompts
    whose record takes more than RECORD_BYTES have prefills of their own.

    Args:
        budget: a share or a number of tokens: a goal needs prefills of their own.

    Raises:
        AslError: as `Llama` does.
    """
    llm = question.load(ReplayingLlama, budget, Full())
    try:
        for name in policies:
            llm.use(name)
            answer = _answer(question, llm, name)
            yield replace(answer, prefill_seconds=None)
    finally:
        llm.close()


def measured(question: Question, budget: BudgetValue, policies: Iterable[str]) -> Iterator[Answer]:
    """Answers of all policies, each with a model, a context and a prefill of its own.

    Raises:
        AslError: as `Llama` does.
    """
    for name in policies:
        llm = question.load(Llama, budget, name)
        try:
            # the first use of the weights is not timed: it reads the file
            llm.eval(llm.tokenize(b"warm up"))
            llm.reset()
            yield _answer(question, llm, name)
        finally:
            llm.close()


def _answer(question: Question, llm: Llama, name: str) -> Answer:
    text, n_tokens = question.ask(llm)
    report, decode = llm.last_prefill, llm.last_decode
    assert report is not None and decode is not None
    return Answer(name, text, n_tokens, report, report.prefill_seconds, decode.tokens_per_second)
