"""One full pass over a prompt, many policies: layers that a policy would run as they were are taken from a record.

K/V, hidden states and scores of a layer do not depend on the policy until tokens are dropped. A `Recording` keeps
them; a `Replay` stands in for a `Session` and loads them instead of running layers. What follows a selection runs
as ever, so the results are those of a prefill of its own, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..native import bindings
from ..native.session import Session
from ..policies import Policy, ScoringPolicy
from ..policies.contract import Floats, Indices

RECORD_BYTES = 8 * 2**30
"""host memory for the full passes over one prompt, unless told otherwise"""
_WINDOW = 32
"""of a pass for policies that have none of their own"""

_Pass = tuple[int, bytes | None]
"""window, and the weights of its queries as float32 bytes"""


@dataclass(frozen=True)
class RecordedLayer:
    """What one layer made of all tokens."""

    state: np.ndarray
    """uint8 of `Session.save_layer`"""
    scores: Floats
    queries: Floats
    seconds: float
    """that it took to run, scores included"""
    rows: np.ndarray | None = None
    """uint8 [n_past, row bytes] of `Session.save_rows`: K/V of the chunks before those that hold the window"""


@dataclass(frozen=True)
class Recording:
    """A full pass over a prompt."""

    tokens: tuple[int, ...]
    window: int
    weights: Floats | None
    """of the window's queries; None: 1"""
    layers: tuple[RecordedLayer, ...]

    @property
    def n_bytes(self) -> int:
        """Host memory it takes."""
        parts = [(layer.state, layer.scores, layer.queries, layer.rows) for layer in self.layers]
        return sum(part.nbytes for of_layer in parts for part in of_layer if part is not None)


def recording_bytes(session: Session, n_tokens: int) -> int:
    """Host memory of one full pass, about: K/V twice (rows by themselves), hidden states and scores."""
    info = session.info()
    return int(n_tokens * (2 * info.kv_bytes_cell + 4 * info.n_layer * (info.n_hidden + info.n_head_kv)))


def record(
    session: Session, tokens: Sequence[int], window: int = 32, weights: Floats | None = None, *, n_past: int = 0
) -> Recording:
    """Runs all layers over a prompt, with scores of this window; the decode context is left empty.

    n_past: first tokens whose rows are kept as well, for `rescored`.
    """
    layers = []
    session.rank_by("attention")
    session.begin(tokens, window)
    try:
        session.set_window(min(window, len(tokens)), weights)
        for itself in session.sliding:
            started = time.perf_counter()
            session.run(1, not itself)  # nobody asks for scores of the others
            seconds = time.perf_counter() - started
            rows = session.save_rows(0, n_past) if n_past else None
            none = np.empty((0, 0), dtype=np.float32)
            scores, queries = (none, none) if itself else (session.scores(), session.queries())
            layers.append(RecordedLayer(session.save_layer(), scores, queries, seconds, rows))
    finally:
        session.abort()
    return Recording(tuple(tokens), min(window, len(tokens)), weights, tuple(layers))


def rescored(session: Session, recording: Recording, window: int, weights: Floats | None) -> Recording:
    """The same pass with scores of another window: of each layer, only the chunks that hold it run again.

    Args:
        recording: with rows, of a number of tokens at which a chunk begins and that leaves room for the window.
    """
    layers: list[RecordedLayer] = []
    session.rank_by("attention")
    session.begin(recording.tokens, window)
    try:
        for layer in recording.layers:
            assert layer.rows is not None
            if not layers:
                session.set_past(len(layer.rows))
                session.set_window(window, weights)
            session.load_rows(layer.rows)
            session.run(1, True)
            layers.append(replace(layer, scores=session.scores(), queries=session.queries()))
    finally:
        session.abort()
    return Recording(recording.tokens, window, weights, tuple(layers))


class Replay:
    """A session that has run this prompt before. Takes the place of a `Session` in `engine.prefill`."""

    def __init__(self, session: Session, recording: Recording) -> None:
        self._session = session
        self.sliding, self.drops_tokens, self.state_bytes = session.sliding, session.drops_tokens, session.state_bytes
        self._recording = recording
        self._layer = -1  # that ran last, as the caller sees it
        self._loaded = -1  # that the session holds
        self._intact = False  # all tokens of the recording are current
        self._window = 0
        self._weights: Floats | None = None
        self._by_attention = True
        self._from_record = False  # scores and queries of the last layer are the recording's
        self.seconds_spared = 0.0
        """that the layers taken from the record would have taken to run, less what loading them took; of all prompts"""

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """`Session.begin`; another prompt than the recorded one simply runs."""
        self._session.begin(tokens, window, first_pos)
        self._intact = first_pos == 0 and tuple(tokens) == self._recording.tokens
        self._layer = self._loaded = -1
        self._window, self._weights = min(window, len(tokens)), None

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """`Session.set_window`"""
        self._session.set_window(window, weights)
        self._window, self._weights = window, weights

    def rank_by(self, ranks_by: str) -> None:
        """`Session.rank_by`; the record has attention's scores."""
        self._session.rank_by(ranks_by)
        self._by_attention = ranks_by == "attention"

    def expect(self, n_kept: int, layer: int) -> None:
        """`Session.expect`"""
        self._session.expect(n_kept, layer)

    def running(self, n_layers: int, with_scores: bool) -> Iterator[None]:
        """`Session.running`, from the record where it has what is wanted."""
        self._layer += n_layers
        self._from_record = False
        if not self._intact:
            yield from self._session.running(n_layers, with_scores)
            self._loaded = self._layer
            return
        if with_scores and not self._recorded():
            # another window than was recorded: this layer has to run
            taken = self._recording.layers[self._layer + 1 - n_layers : self._layer]
            self.seconds_spared += sum(layer.seconds for layer in taken)
            self._load(self._layer - 1)
            yield from self._session.running(1, True)
            self._loaded = self._layer
            return
        taken = self._recording.layers[self._layer + 1 - n_layers : self._layer + 1]
        self.seconds_spared += sum(layer.seconds for layer in taken)
        self._load(self._layer)
        self._from_record = True

    def _recorded(self) -> bool:
        """Whether the scores that are wanted are those of the record."""
        theirs, ours = self._recording.weights, self._weights
        if not self._by_attention or self._window != self._recording.window or (theirs is None) != (ours is None):
            return False
        return theirs is None or ours is None or np.array_equal(theirs, ours)

    def _load(self, layer: int) -> None:
        started = time.perf_counter()
        for one in range(self._loaded + 1, layer + 1):
            # layers on the way may keep what they remember by themselves, or be read by deeper ones
            if one == layer or any(self.sliding):
                self._session.load_layer(one, self._recording.layers[one].state)
                self._loaded = one
        self.seconds_spared -= time.perf_counter() - started

    def scores(self) -> Floats:
        """`Session.scores`"""
        return self._recording.layers[self._layer].scores if self._from_record else self._session.scores()

    def queries(self) -> Floats:
        """`Session.queries`"""
        return self._recording.layers[self._layer].queries if self._from_record else self._session.queries()

    def keys(self) -> Floats:
        """`Session.keys`"""
        return self._session.keys()

    def keep_rows(self, index: Indices | None) -> int:
        """`Session.keep_rows`"""
        return self._session.keep_rows(index)

    def shrink_rows(self, layer: int, index: Indices) -> None:
        """`Session.shrink_rows`"""
        self._session.shrink_rows(layer, index)

    def keep_tokens(self, index: Indices) -> None:
        """`Session.keep_tokens`; from here on layers run."""
        self._session.keep_tokens(index)
        self._intact = False

    def info(self) -> bindings.session_info:
        """`Session.info`"""
        return self._session.info()

    def finishing(self) -> Iterator[None]:
        """`Session.finishing`"""
        return self._session.finishing()

    def abort(self) -> None:
        """`Session.abort`"""
        self._session.abort()
        self._intact = False


class Records:
    """Records of one prompt: a full pass, and its scores for each window and weighting that policies score with."""

    def __init__(self, session: Session, tokens: Sequence[int]) -> None:
        self._session = session
        self._tokens = tuple(tokens)
        self._replays: dict[_Pass, Replay] = {}
        self._first: Recording | None = None
        n_batch = session.chunks["n_batch"]
        # tokens whose K/V are loaded when the others run again; layers with a sliding window take none
        self._n_past = 0 if any(session.sliding) else max(0, len(tokens) - _WINDOW) // n_batch * n_batch

    def replay_for(self, policy: Policy, n_kept: int) -> Replay:
        """A session that has run the prompt as this policy would; one that is there already, if it scores nothing."""
        if self._replays and not isinstance(policy, ScoringPolicy):
            return next(iter(self._replays.values()))
        key = _pass_of(policy, len(self._tokens), n_kept)
        if key not in self._replays:
            window, weights = key[0], None if key[1] is None else np.frombuffer(key[1], dtype=np.float32)
            self._replays[key] = Replay(self._session, self._record(window, weights))
        return self._replays[key]

    def _record(self, window: int, weights: Floats | None) -> Recording:
        if self._first is None:
            self._first = record(self._session, self._tokens, window, weights, n_past=self._n_past)
            return self._first
        if self._fits(window):
            return rescored(self._session, self._first, window, weights)
        return record(self._session, self._tokens, window, weights)

    def n_passes(self, uses: Sequence[tuple[Policy, int]]) -> int:
        """Full passes that these policies and budgets take."""
        scoring = [use for use in uses if isinstance(use[0], ScoringPolicy)]
        windows = [window for window, _ in {_pass_of(policy, len(self._tokens), n_kept) for policy, n_kept in scoring}]
        n_alone = sum(not self._fits(window) for window in windows)
        return n_alone + (n_alone < max(1, len(windows)))

    def _fits(self, window: int) -> bool:
        """Whether the chunks that are not loaded hold this window."""
        return 0 < self._n_past <= len(self._tokens) - window


def _pass_of(policy: Policy, n_tokens: int, n_kept: int) -> _Pass:
    if not isinstance(policy, ScoringPolicy):
        return min(_WINDOW, n_tokens), None
    window = policy.window_of(n_tokens, n_kept)
    weights = policy.weights_of(window)
    return window, None if weights is None else weights.astype(np.float32).tobytes()
