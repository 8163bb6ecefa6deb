"""The slots of llama.cpp's server as sequences of the engine."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.place import SharedContext
from ..engine.plan import Plan, Request
from ..engine.sequence import Sequence as EngineSequence
from ..engine.stock_report import stock_report
from ..engine.transcript import Transcript
from ..errors import ContextFullError, OutOfMemoryError, PromptError
from ..native.bindings import llama_cpp
from ..native.vocabulary import piece
from ..policies.contract import Indices
from ..policies.protect import Protection
from ..report import PrefillReport
from .hosts import Hosts
from .options import Options
from .pace import Pace
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
    n_common: int = 0
    """its first tokens that are those of a prompt that the server remembers, in a slot or in its cache"""
    other: int = -1
    """the token that comes after them there; -1: nothing does"""
    spans: Spans = ()
    options: str = ""
    """JSON: an object with the request's `asl` and, of a chat, its `messages`"""
    unprunable: str | None = None
    adapters: Sequence[tuple[int, float]] = ()
    """LoRA adapters that it runs with (`llama_adapter_lora *`), and their scales"""
    adapters_id: int = 0
    """tells them apart"""


class Slot:
    """One slot. The server owns what its cells stand for and says so with every prompt.

    Args:
        make_place: gives the slot's sequence of the server's context, for a progress callback.
        rules: what a request keeps.
        options: the server's.
        n_ctx: longest prompt + answer in tokens.
        pace: says how long a chunk may be; None: the server's own chunks.
        hosts: K/V of all tokens of the last prompts, of all slots.
    """

    def __init__(
        self,
        make_place: Callable[[Any], SharedContext],
        rules: Rules,
        options: Options,
        n_ctx: int,
        pace: Pace | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self._place = make_place(self._note)
        self._hosts = hosts or Hosts([])
        self._pace = pace
        self._rules = rules
        self._options = options
        self._sequence = EngineSequence(
            self._place,
            rules.server(),
            Transcript(n_ctx),
            guard=options.guard,
            dequant=options.dequant,
            calibration=rules.calibration,
        )
        self._done = 0.0
        self._waits_since: float | None = None
        self._incoming: Incoming | None = None
        self._began = self._busy = 0.0
        self._plan: Plan | None = None

    def _note(self, done: int, total: int) -> None:
        # a deeper selection makes the rest longer, not what is done less
        self._done = max(self._done, done / max(total, 1))

    def plan(self, incoming: Incoming) -> bool:
        """Whether the engine runs the prompt, in slices; if not, the server evaluates what the cells do not hold.

        Raises:
            OptionError, PromptError, ContextFullError: it is refused.
        """
        self._sequence.cancel()
        self._began, self._busy, self._done = time.perf_counter(), 0.0, 0.0
        self._incoming, self._plan, self._waits_since = incoming, None, None
        held = incoming.tokens[: incoming.n_past]
        if not held:
            self._place.clear()
        self._place.adopt(incoming.n_dropped)
        self._place.adapters = incoming.adapters
        if self._pace is not None:
            most = self._place.n_chunk_most
            self._place.n_chunk = self._pace.chunk(len(incoming.tokens), self._options.slice_ms / 2000, most)
        self._sequence.transcript.set(held, n_pruned=incoming.n_pruned, needs_eval=True)
        given = json.loads(incoming.options) if incoming.options else {}
        request = RequestOptions.of(given.get("asl"))
        rule = self._rules.of(request)
        self._sequence.rule, self._sequence.policy = rule, rule.context.policy
        share = self._options.guard if request.guard is None else request.guard
        self._sequence.guard = replace(self._sequence.guard, share=share)
        n_answer = self._cells_for_answer(incoming.n_answer)
        if incoming.unprunable is not None:
            self._check_fits(incoming, n_answer)
            return False
        roles = self._options.protect if request.protect is None else request.protect
        messages = given.get("messages")
        protected = (lambda: self._protected(roles, incoming, messages)) if roles else None
        remembers = request.full_kv is not False
        self._sequence.host = (
            self._hosts.take(self._sequence, incoming.tokens, incoming.adapters_id) if remembers else None
        )
        self._plan = plan = self._sequence.plan(Request(incoming.tokens, n_answer, protected))
        self._sequence.start(plan)
        self._busy = time.perf_counter() - self._began
        return plan.runs

    def _protected(self, roles: Sequence[str], incoming: Incoming, messages: Any) -> Indices:
        """Where the messages stand in the prompt's text; where a template changes them, llama.cpp's marks of messages."""
        model = llama_cpp.llama_get_model(self._place.ctx)
        if isinstance(messages, list) and messages:
            tokens = incoming.tokens
            with contextlib.suppress(PromptError, AttributeError, KeyError, TypeError):
                protection = Protection(roles=tuple(roles))
                return protection.indices(len(tokens), lambda: [piece(model, token) for token in tokens], messages)
        return protected_tokens(roles, incoming.spans)

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

    def step(self, seconds: float, *, others_run: bool = False) -> bool:
        """Runs chunks until the next one would probably not end within so long, at least one.

        Args:
            others_run: other prompts run, and memory will be free when they have ended.

        Returns:
            whether more is to do

        Raises:
            OutOfMemoryError: there is none for this prompt, and none came free while it waited.
        """
        began = time.perf_counter()
        done, longest = began, 0.0
        try:
            while more := self._sequence.step():
                now = time.perf_counter()
                longest = max(longest, now - done)
                done = now
                self._waits_since = None
                if now - began + longest > seconds:
                    break
        except OutOfMemoryError:
            if not others_run or not self._may_wait():
                raise
            return True
        finally:
            self._busy += time.perf_counter() - began
        return more

    def _may_wait(self) -> bool:
        """Begins the prompt again at the next step, unless it has waited for long."""
        now = time.perf_counter()
        self._waits_since = now if self._waits_since is None else self._waits_since
        if now - self._waits_since > self._options.wait or self._plan is None:
            return False
        self._sequence.start(self._plan)
        return True

    @property
    def runs(self) -> bool:
        """Whether a prefill has begun and not ended."""
        return self._sequence.runs and not self.waits

    @property
    def waits(self) -> bool:
        """Whether the prompt waits for memory."""
        return self._waits_since is not None

    def cancel(self) -> None:
        """Gives up what is running. A turn's past stays."""
        self._sequence.cancel()

    @property
    def n_past(self) -> int:
        """First tokens of the prompt that the cells stand for."""
        return self._sequence.transcript.n_tokens

    @property
    def n_pruned(self) -> int:
        """First tokens of `n_tokens` of which K/V were dropped; 0: none were."""
        return len(self._sequence.transcript.pruned)

    @property
    def n_dropped(self) -> int:
        """Tokens without a cell."""
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
        return {
            **summary(self.last_report),
            "first_difference": self._first_difference(incoming),
            "seconds": round(self._busy, 4),
            "elapsed_seconds": round(time.perf_counter() - self._began, 4),
        }

    def _first_difference(self, incoming: Incoming) -> dict[str, Any] | None:
        """Where the prompt leaves what the server remembers of it; None: it goes on from there, or nothing begins alike."""
        if incoming.other < 0 or incoming.n_common >= len(incoming.tokens):
            return None
        model = llama_cpp.llama_get_model(self._place.ctx)
        ids = incoming.other, incoming.tokens[incoming.n_common]
        was, now = (piece(model, token).decode("utf-8", "replace") for token in ids)
        return {"token": incoming.n_common, "was": was, "is": now}

    @property
    def last_report(self) -> PrefillReport:
        """All about the prompt."""
        incoming = self._incoming
        assert incoming is not None
        report = self._unprunable_report(incoming) if incoming.unprunable is not None else self._sequence.report
        assert report is not None
        return report

    @property
    def n_held(self) -> int:
        """First tokens of the prompt that stand for cells which were there before."""
        assert self._incoming is not None
        if self._plan is None:
            return self._incoming.n_past
        return self._plan.n_past if self._plan.action in ("append", "turn") else 0

    @property
    def tokens(self) -> list[int]:
        """Token ids of the prompt that runs."""
        assert self._incoming is not None
        return self._incoming.tokens

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
        "budget_choice": report.budget_choice,
        "policy": report.policy,
        "selection_layer": report.selection_layer,
        "n_layer": report.n_layer,
        "attention_mass": report.attention_mass,
        "protected_tokens": report.protected_tokens,
        "kv_bytes": report.kv_bytes_prompt,
        "kv_bytes_full": report.kv_bytes_prompt_full,
        "host_kv_bytes": report.full_kv_bytes,
        "reason": report.reason,
    }


def protected_tokens(roles: Sequence[str], spans: Spans) -> Indices:
    """Indices of the tokens of these parts of a chat, increasing; outside a chat there are none.

    llama.cpp marks the messages of users; of few templates those of the system, which stand before the first user's.
    """
    users = [(begin, end) for role, begin, end in spans if role == _USER]
    ranges = [(begin, end) for role, begin, end in spans if role == _SYSTEM and "system" in roles]
    if users and ("tools" in roles or ("system" in roles and not ranges)):
        ranges.append((0, users[0][0]))
    if users and "question" in roles:
        ranges.append(users[-1])
    found = [np.arange(begin, end, dtype=np.int32) for begin, end in ranges]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int32)
