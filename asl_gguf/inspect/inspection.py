"""One prompt under one policy, with a record of what every layer kept."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..budget.targets import BudgetValue, room_of_one
from ..drop_in.llama import Llama
from ..native import vocabulary
from ..policies import GemFilter, Policy
from ..policies.contract import Decision, Floats, Indices, LayerScores
from ..report import DecodeReport, PrefillReport
from .recorder import PolicyRecorder

_Model = TypeVar("_Model", bound=Llama)


@dataclass(frozen=True)
class Question:
    """A prompt, and the model that answers it."""

    model: str
    """GGUF file or name of a pulled model"""
    text: str
    n_ctx: int
    """longest prompt + answer in tokens"""
    max_tokens: int = 48
    raw: bool = False
    """plain completion in place of the model's chat template"""
    options: dict[str, Any] = field(default_factory=dict)
    """further keyword arguments of `Llama`"""

    def load(self, kind: Callable[..., _Model], budget: BudgetValue | None, policy: str | Policy) -> _Model:
        """The model under a policy; kind: `Llama` or a class of its kind."""
        return kind(
            self.model,
            n_ctx=self.n_ctx,
            asl_budget=budget,
            asl_policy=policy,
            asl_room=room_of_one(budget, self.max_tokens),
            **self.options,
        )

    def ask(self, llm: Llama) -> tuple[str, int]:
        """The greedy answer and the number of its tokens."""
        options: Any = {"max_tokens": self.max_tokens, "temperature": 0.0}
        result: Any
        if self.raw:
            result = llm.create_completion(self.text, **options)
            text = result["choices"][0]["text"]
        else:
            result = llm.create_chat_completion([{"role": "user", "content": self.text}], **options)
            text = result["choices"][0]["message"]["content"] or ""
        return text, result["usage"]["completion_tokens"]


@dataclass(frozen=True)
class Inspection:
    """What a policy did to a prompt."""

    model: str
    """name of the model or of its file"""
    policy: Policy
    budget: BudgetValue | None
    report: PrefillReport
    decode: DecodeReport
    answer: str
    pieces: tuple[str, ...]
    """text of each prompt token; a character of several tokens comes with the last of them"""
    kept: Floats
    """float32 [n_layer, n_tokens]: share of the layer's KV heads whose rows hold the token"""
    always: dict[str, frozenset[int]]
    """tokens that are kept whatever their scores: protected, window, sink"""
    attention_mass: tuple[tuple[int, float], ...]
    """(layer, share of the window's attention on kept rows) where it was measured"""

    @property
    def kept_shares(self) -> Floats:
        """float32 [n_tokens]: share of the pairs of layer and KV head that keep a token."""
        return self.kept.mean(axis=0)


class _WatchedLlama(Llama):
    def watch(self) -> PolicyRecorder:
        """Watches the policy from now on, as it is after a calibration."""
        watch = PolicyRecorder(self._asl.policy)
        if self._sequence is not None:
            self._sequence.policy = watch.policy
        return watch


def inspect_prompt(question: Question, budget: BudgetValue | None, policy: str | Policy) -> Inspection:
    """Answers a question under a policy, a calibrated one if it is given by name, and records what was kept.

    Raises:
        AslError: as `Llama` does.
    """
    llm = question.load(_WatchedLlama, budget, policy)
    try:
        watch = llm.watch()
        answer, _ = question.ask(llm)
        report, decode = llm.last_prefill, llm.last_decode
        assert report is not None and decode is not None
        tokens = llm.input_ids[: report.prompt_tokens].tolist()
        pieces = token_texts([vocabulary.piece(llm.model, token) for token in tokens])
    finally:
        llm.close()
    seen = watch.seen if report.pruned else []  # an attempt may have been given up for the full cache
    # of a first pass that was followed by a second one, no rows are left
    measured = [scores.layer for scores, _ in seen if scores.attention.size and report.passes == 1]
    return Inspection(
        model=Path(question.model).name,
        policy=watch.policy,
        budget=budget,
        report=report,
        decode=decode,
        answer=answer,
        pieces=tuple(pieces),
        kept=kept_by_layer(seen, report),
        always=_always(watch, report) if report.pruned else {},
        attention_mass=tuple(zip(measured, report.attention_mass_by_layer)),
    )


def token_texts(pieces: Sequence[bytes]) -> list[str]:
    """Texts of tokens, some of which may be parts of a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(piece, final=i == len(pieces) - 1) for i, piece in enumerate(pieces)]


def kept_by_layer(seen: Sequence[tuple[LayerScores, Decision]], report: PrefillReport) -> Floats:
    """Which tokens the layers' rows hold, from a policy's decisions in turn.

    Returns:
        float32 [n_layer, n_tokens]: share of the layer's KV heads
    """
    result = np.zeros((report.n_layer, report.prompt_tokens), dtype=np.float32)
    current = _kept_where_asked(seen, result)
    for layer in report.sliding_layers:  # nobody was asked: they hold the newest of the tokens that are left
        result[layer] = 0.0
        result[layer, current[current.size - report.rows_by_layer[layer] :]] = 1.0
    return result


def _kept_where_asked(seen: Sequence[tuple[LayerScores, Decision]], result: Floats) -> Indices:
    """Fills in the layers that the policy was asked about and those behind them; returns the tokens that are left."""
    n_layer, n_tokens = result.shape
    current: Indices = np.arange(n_tokens, dtype=np.int32)
    n_done = 0
    for scores, decision in seen:
        n_done = scores.layer + 1
        if decision.second_pass and decision.tokens is not None:
            result[:] = 0.0  # a second pass: all layers keep all that is left, and nothing of the first one
            current = current[decision.tokens]
            result[:, current] = 1.0
            return current
        per_head = np.atleast_2d(np.arange(current.size) if decision.rows is None else decision.rows)
        np.add.at(result[scores.layer], current[per_head], 1 / per_head.shape[0])
        if decision.tokens is not None and n_done < n_layer:
            current = current[decision.tokens]
    result[n_done:, current] = 1.0
    return current


def _always(watch: PolicyRecorder, report: PrefillReport) -> dict[str, frozenset[int]]:
    policy = watch.policy
    n_tokens = report.prompt_tokens
    # GemFilter keeps the last token alone, whatever its window
    one = isinstance(policy, GemFilter)
    n_window = watch.prompt.n_window if watch.prompt else report.budget_tokens
    window = 1 if one else policy.window_of(len(report.selected) or n_tokens, n_window)
    protected = watch.prompt.protected.tolist() if watch.prompt else []
    return {
        "protected": frozenset(protected),
        "window": frozenset(range(n_tokens - window, n_tokens)),
        "sink": frozenset(range(min(policy.first_kept, n_tokens))),
    }
