"""The tokens of one conversation, whether their K/V were kept or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import StateError


class Transcript:
    """What was evaluated in a sequence, and what was said after it.

    `llama_cpp.Llama` writes to `ids` and `n_tokens` as its own; so may users. The prompt whose K/V were dropped in part
    is remembered apart: nothing that is written there changes what its K/V stand for.
    """

    def __init__(self, n_ctx: int) -> None:
        self.ids = np.zeros(n_ctx, dtype=np.intc)
        """int32 [n_ctx]: token ids, of which the first n_tokens were evaluated"""
        self.n_tokens = 0
        self.needs_eval = True
        """the logits after the last token are not in the context"""
        self.pruned: tuple[int, ...] = ()
        """the tokens up to the end of the last prompt of which K/V were dropped; (): none were"""
        self.sampled: int | None = None
        """last token of the answer, given out but not evaluated; None: there is none, or it is no text"""
        self.unasked = False
        """what K/V were dropped was decided before anything was asked, or in another process"""
        self.turn = 0
        """prompts and resets so far"""

    def clear(self) -> None:
        """Nothing is evaluated."""
        self.n_tokens, self.needs_eval = 0, True
        self.pruned, self.sampled, self.unasked = (), None, False
        self.turn += 1

    def set(self, tokens: Sequence[int], *, n_pruned: int, needs_eval: bool, sampled: int | None = None) -> None:
        """These tokens were evaluated; K/V of the first n_pruned were dropped in part."""
        self.n_tokens = len(tokens)
        self.ids[: self.n_tokens] = tokens
        self.pruned = tuple(tokens[:n_pruned])
        self.needs_eval, self.sampled, self.unasked = needs_eval, sampled, False

    def append(self, tokens: Sequence[int]) -> None:
        """These tokens were evaluated after the others."""
        end = self.n_tokens + len(tokens)
        self.ids[self.n_tokens : end] = tokens
        self.n_tokens, self.needs_eval, self.sampled = end, False, None

    def evaluated(self) -> list[int]:
        """The tokens up to n_tokens; pruned ones as they were, whatever was written to `ids` since."""
        self.ids[: len(self.pruned)] = self.pruned
        return self.ids[: self.n_tokens].tolist()

    def text(self) -> list[int]:
        """The evaluated tokens and the sampled one."""
        return self.evaluated() + ([] if self.sampled is None else [self.sampled])

    def is_start_of(self, tokens: Sequence[int]) -> bool:
        """Whether a prompt starts with all that was evaluated and said, the pruned prompt included."""
        held = self.text()
        return self.n_tokens >= max(len(self.pruned), 1) and list(tokens[: len(held)]) == held

    def n_common(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start of a prompt were evaluated."""
        ours = self.ids[: min(self.n_tokens, len(tokens))]
        differing = np.flatnonzero(ours != np.asarray(tokens[: ours.size], dtype=np.int64))
        return int(differing[0]) if differing.size else ours.size

    def check_whole(self) -> None:
        """Raises StateError if n_tokens was set to less than the pruned prompt."""
        if self.n_tokens < len(self.pruned):
            raise StateError(
                f"expected to go on from all {len(self.pruned)} tokens of the pruned prompt, got n_tokens = "
                f"{self.n_tokens}; call reset()"
            )


def taken_back(n_evaluated: int, n_tokens: int) -> StateError:
    """The error where n_tokens was set to less, and recurrent states or sliding windows do not go back."""
    return StateError(
        f"expected to go on from all {n_evaluated} tokens that were evaluated, for what this model remembers of them cannot be "
        f"taken back, got n_tokens = {n_tokens}; begin anew, without a draft_model or tokens sent into a stream"
    )
