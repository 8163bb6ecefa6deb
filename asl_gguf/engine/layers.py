"""What a prefill runs through: the layers of a session, or of a store that knows some of them already."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, TypeVar

from ..native.bindings import session_info
from ..policies.contract import Floats, Indices

_T = TypeVar("_T")


class Layers(Protocol):
    """The calls of `Session` that a prefill makes. What takes time comes in slices: generators that yield between them.

    `Session` runs every layer. `ReusingLayers` loads the K/V of a prompt's start from host memory, `ReplayedLayers` takes
    layers from a recording, `TurnLayers` runs a turn's tokens over the K/V that its conversation keeps.
    """

    @property
    def sliding(self) -> tuple[bool, ...]:
        """For each layer, whether the policy is not asked about it: a sliding window, a recurrent state, K/V of an earlier layer."""

    @property
    def drops_tokens(self) -> bool:
        """Whether deeper layers may run over fewer tokens."""

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent states; they do not grow with the prompt."""

    def info(self) -> session_info:
        """Sizes and progress."""

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """Starts a prefill at a position."""

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """Scores come from the last `window` tokens from now on, float32 [window] factors on their queries."""

    def rank_by(self, ranks_by: str) -> None:
        """What scores tell from now on: "attention", or what an "indexer" makes of it."""

    def expect(self, n_kept: int, layer: int) -> None:
        """For the progress callback: layers after this one will see n_kept tokens."""

    def running(self, n_layers: int, with_scores: bool) -> Iterator[None]:
        """Runs the next layers over the current tokens; the last of them has scores."""

    def scores(self) -> Floats:
        """float32 [n_head_kv, n_current]: the window's attention in the layer that ran last."""

    def queries(self) -> Floats:
        """float32 [window, n_head, n_embd_head_k]"""

    def keys(self) -> Floats:
        """float32 [n_current, n_head_kv, n_embd_head_k]"""

    def keep_rows(self, index: Indices | None) -> int:
        """Keeps K/V rows of the layer that ran last, int32 [k] or [n_head_kv, k]; None: all. Returns k."""

    def shrink_rows(self, layer: int, index: Indices) -> None:
        """Drops kept rows of a layer but for these: places among them, int32 [k] or [n_head_kv, k]."""

    def keep_tokens(self, index: Indices) -> None:
        """Deeper layers see only these tokens, int32 [k]."""

    def finishing(self) -> Iterator[None]:
        """Runs what remains; the last token's logits are there then."""

    def abort(self) -> None:
        """Ends an open prefill."""


def drained(slices: Generator[None, None, _T]) -> _T:
    """Runs all slices without a pause and returns their result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value
