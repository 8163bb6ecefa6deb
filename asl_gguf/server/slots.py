"""The slots of llama.cpp's server as sequences of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.place import SharedContext
from ..engine.plan import Request
from ..engine.sequence import Sequence as EngineSequence
from ..engine.stock_report import stock_report
from ..engine.transcript import Transcript
from ..errors import ContextFullError
from ..policies.contract import Indices
from ..report import PrefillReport
from .options import Options
from .rule import RequestOptions, Rules

_SYSTEM, _USER = 1, 3
"""of llama.cpp's `common_chat_role`"""

Spans = Sequence[tuple[int, int, int]]
"""(role, begin, end) of each message, in tokens"""


@dataclass(frozen=True)
class Incoming:
    """A prompt that has found a slot."""

    tokens: list[int]
    n_past: int
    """its first tokens that the slot's cells stand for"""
    n_pruned: int
    n_dropped: int
    """of the first n_past, tokens without a cell"""
    n_answer: int
    """most tokens of the answer; negative: no limit"""
    spans: Spans = ()
    options: str = ""
    unprunable: str | None = None


class Slot:
    """One slot. The server owns what its cells stand for and says so with every prompt.

    Args:
        place: the slot's sequence of the server's context.
        rules: what a request keeps.
        options: the server's.
    """

    def __init__(self, make_place: Callable[[Any], SharedContext], rules: Rules, options: Options, n_ctx: int) -> None:
        self._place = make_place(self._note)
        self._rules = rules
        self._options = options
        self._sequence = EngineSequence(
            self._place,
            rules.server,
            Transcript(n_ctx),
            guard=options.guard,
            dequant=options.dequant,
            calibration=rules.calibration,
        )
        self._done = 0.0
        self._incoming: Incoming | None = None
        self._began = self._busy = 0.0

    def _note(self, done: int, total: int) -> None:
        self._done = done / max(total, 1)

    def probe(self) -> None:
        """Raises UnsupportedModelError or NativeError if no prompt could be prefilled for this slot."""
        self._place.open(1)
        self._place.leave()

    def plan(self, incoming: Incoming) -> bool:
        """Whether the engine runs the prompt, in slices; if not, the server evaluates what the cells do not hold.

        Raises:
            OptionError, PromptError, ContextFullError: it is refused.
        """
        self._sequence.cancel()
        self._began, self._busy, self._done = time.perf_counter(), 0.0, 0.0
        self._incoming = incoming
        held = incoming.tokens[: incoming.n_past]
        self._place.adopt(incoming.n_dropped)
        self._sequence.transcript.set(held, n_pruned=incoming.n_pruned, needs_eval=True)
        rule = self._rules.of(RequestOptions.parse(incoming.options))
        self._sequence.rule, self._sequence.policy = rule, rule.context.policy
        n_answer = self._cells_for_answer(incoming.n_answer)
        if incoming.unprunable is not None:
            self._check_fits(incoming, n_answer)
            return False
        protected = (lambda: protected_tokens(self._options.protect, incoming.spans)) if self._options.protect else None
        plan = self._sequence.plan(Request(incoming.tokens, n_answer, protected))
        self._sequence.start(plan)
        self._busy = time.perf_counter() - self._began
        return plan.runs

    def _cells_for_answer(self, n_most: int) -> int:
        """An answer without a limit gets a quarter of the room at least; one that has one, no more than the room."""
        room = self._options.room
        return max(1, min(n_most, room) if n_most >= 0 else room // 4)

    def _check_fits(self, incoming: Incoming, n_answer: int) -> None:
        n_new = len(incoming.tokens) - incoming.n_past
        if n_new + n_answer > (n_free := self._place.n_cells - self._place.n_used):
            raise ContextFullError(
                f"expected a prompt and answer of at most {n_free} more tokens, which are not pruned because "
                f"{incoming.unprunable}, got {n_new} + {n_answer}; start the server with a larger --asl-room or -c"
            )

    def step(self, seconds: float) -> bool:
        """Runs slices for about so long. Returns whether more is to do."""
        began = time.perf_counter()
        try:
            while more := self._sequence.step():
                if time.perf_counter() - began >= seconds:
                    break
        finally:
            self._busy += time.perf_counter() - began
        return more

    def cancel(self) -> None:
        """Gives up what is running. A turn's past stays."""
        self._sequence.cancel()

    @property
    def n_past(self) -> int:
        """First tokens of the prompt that the cells stand for."""
        return self._sequence.transcript.n_tokens

    @property
    def n_pruned(self) -> int:
        """Of these, the prompt of which K/V were dropped."""
        return len(self._sequence.transcript.pruned)

    @property
    def n_dropped(self) -> int:
        """Of these, tokens without a cell."""
        return self._place.n_dropped

    @property
    def n_done(self) -> int:
        """Tokens that the progress so far amounts to."""
        assert self._incoming is not None
        n_tokens, n_past = len(self._incoming.tokens), self.n_past
        return min(n_past + int((n_tokens - n_past) * self._done), n_tokens)

    def report(self) -> dict[str, Any]:
        """What happened to the prompt, for the client."""
        incoming = self._incoming
        assert incoming is not None
        report = self._unprunable_report(incoming) if incoming.unprunable is not None else self._sequence.report
        assert report is not None
        return {
            **summary(report),
            "seconds": round(self._busy, 4),
            "elapsed_seconds": round(time.perf_counter() - self._began, 4),
        }

    def _unprunable_report(self, incoming: Incoming) -> PrefillReport:
        n_tokens = len(incoming.tokens)
        return stock_report(
            self._place.ctx,
            n_tokens=n_tokens,
            n_reused=incoming.n_past,
            n_kept=n_tokens - incoming.n_dropped,
            n_ctx=self._sequence.n_ctx,
            info=self._place.info(),
            policy=self._sequence.policy.name,
            budget=n_tokens,
            reason=incoming.unprunable,
        )


def summary(report: PrefillReport) -> dict[str, Any]:
    """The part of a report that answers carry."""
    return {
        "pruned": report.kept_tokens < report.prompt_tokens,
        "prompt_tokens": report.prompt_tokens,
        "kept_tokens": report.kept_tokens,
        "cached_tokens": report.reused_tokens,
        "budget_tokens": report.budget_tokens,
        "policy": report.policy,
        "selection_layer": report.selection_layer,
        "n_layer": report.n_layer,
        "attention_mass": report.attention_mass,
        "protected_tokens": report.protected_tokens,
        "kv_bytes": report.kv_bytes_prompt,
        "kv_bytes_full": report.kv_bytes_prompt_full,
        "reason": report.reason,
    }


def protected_tokens(roles: Sequence[str], spans: Spans) -> Indices:
    """Indices of the tokens of these parts of a chat, increasing; outside a chat there are none."""
    users = [(begin, end) for role, begin, end in spans if role == _USER]
    ranges = []
    if "system" in roles:
        ranges += [(begin, end) for role, begin, end in spans if role == _SYSTEM]
    if users and "tools" in roles:
        ranges.append((0, users[0][0]))
    if users and "question" in roles:
        ranges.append(users[-1])
    found = [np.arange(begin, end, dtype=np.int32) for begin, end in ranges]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int32)
