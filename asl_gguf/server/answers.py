"""The last answers, for the page at /asl: what was kept of each prompt, in its text."""

from __future__ import annotations

import codecs
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..native.vocabulary import piece
from ..report import PrefillReport

DROPPED, KEPT, UNKNOWN = 0, 1, 2
_LONGEST = 1 << 16
"""tokens of a prompt that is shown"""


@dataclass
class Answer:
    """A prompt and what was answered."""

    number: int
    slot: int
    when: float
    tokens: tuple[int, ...]
    states: np.ndarray
    """uint8 [n]: of each token, DROPPED, KEPT or UNKNOWN"""
    report: dict[str, Any]
    detail: dict[str, Any]
    text: str = ""
    n_answer: int = 0
    done: bool = False
    pieces: list[bytes] = field(default_factory=list)
    """bytes of each token, once somebody has asked"""


class Answers:
    """The last answers of all slots. Any thread may read, while the server's own thread adds.

    Args:
        n_most: how many are remembered.
    """

    def __init__(self, n_most: int) -> None:
        self._lock = threading.Lock()
        self._answers: deque[Answer] = deque(maxlen=n_most)
        self._numbers = itertools.count(1)
        self._model: Any = None
        self.on = n_most > 0

    def open(self, model: Any) -> None:
        """Tokens are this model's."""
        with self._lock:
            self._model = model

    def close(self) -> None:
        """The model is about to go: what its tokens say is looked up while it can be."""
        with self._lock:
            for answer in self._answers:
                self._read(answer)
            self._model = None

    def begin(
        self, slot: int, tokens: Sequence[int], n_past: int, found: PrefillReport, report: dict[str, Any]
    ) -> None:
        """A prompt's K/V are there, and its answer begins. The report gets its number.

        Args:
            n_past: first tokens that were there before.
        """
        if not self.on:
            return
        report["answer"] = number = next(self._numbers)
        with self._lock:
            states = self._states(tokens, n_past, found)
            detail = {"variance": found.variance, "rows_by_layer": found.rows_by_layer, "turns": found.turns}
            self._answers.appendleft(
                Answer(number, slot, time.time(), tuple(tokens[:_LONGEST]), states, report, detail)
            )

    def end(self, slot: int, text: str, n_tokens: int) -> None:
        """The answer of a slot's last prompt."""
        with self._lock:
            for answer in self._answers:
                if answer.slot == slot:
                    if not answer.done:
                        answer.text, answer.n_answer, answer.done = text, n_tokens, True
                    return

    def _states(self, tokens: Sequence[int], n_past: int, found: PrefillReport) -> np.ndarray:
        """What became of each token. What a slot held before is what the answer that left it there says, if it is known."""
        states = np.full(len(tokens), KEPT, dtype=np.uint8)
        if n_past:
            states[:n_past] = self._past_states(tuple(tokens[:n_past]))
        if found.selected:
            states[n_past:] = DROPPED
            states[list(found.selected)] = KEPT
        elif found.rows_by_layer and min(found.rows_by_layer) < len(tokens) - n_past and not n_past:
            states[:] = UNKNOWN  # each layer and head has kept rows of its own
        return states[:_LONGEST]

    def _past_states(self, past: tuple[int, ...]) -> np.ndarray:
        best = max(
            (answer for answer in self._answers if past[: len(answer.tokens)] == answer.tokens),
            key=lambda answer: len(answer.tokens),
            default=None,
        )
        states = np.full(len(past), UNKNOWN if best is None else KEPT, dtype=np.uint8)
        if best is not None:
            states[: len(best.states)] = best.states
        return states

    def _read(self, answer: Answer) -> None:
        if not answer.pieces and self._model is not None:
            answer.pieces = [piece(self._model, token) for token in answer.tokens]

    def list_json(self) -> bytes:
        """A line for each answer, the newest first."""
        with self._lock:
            lines = [_line(answer) for answer in self._answers]
        return json.dumps({"answers": lines}).encode()

    def one_json(self, number: int) -> bytes | None:
        """All about one answer; None: it is forgotten."""
        with self._lock:
            answer = next((answer for answer in self._answers if answer.number == number), None)
            if answer is None:
                return None
            self._read(answer)
            result = {**_line(answer), **answer.detail, "runs": _runs(answer)}
        return json.dumps(result).encode()


def _line(answer: Answer) -> dict[str, Any]:
    return {
        "number": answer.number,
        "slot": answer.slot,
        "when": answer.when,
        "done": answer.done,
        "text": answer.text,
        "n_answer": answer.n_answer,
        "report": answer.report,
    }


def _runs(answer: Answer) -> list[tuple[int, str]]:
    """(state, text) of neighbouring tokens of one state. A character of several tokens belongs to the last of them."""
    edges = np.flatnonzero(np.diff(answer.states)) + 1
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    runs = []
    for begin, end in itertools.pairwise([0, *edges.tolist(), len(answer.tokens)]):
        text = decoder.decode(b"".join(answer.pieces[begin:end]), final=end == len(answer.tokens))
        runs.append((int(answer.states[begin]), text))
    return runs
