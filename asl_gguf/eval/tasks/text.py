"""How well a text goes on: the start is the prompt, what follows is scored, token by token."""

from __future__ import annotations

import random
import re

from ...errors import OptionError
from .base import Draft, Task
from .files import read_text

_CONTINUATION = 64
"""words"""


class Continuation(Task):
    """64 words of a text file after a prompt that ends where they start; perplexity is exp(nll).

    Continuations lie in the second half of the file. Those of seeds of other parity do not overlap. One word is one
    unit. The score is the share of the continuation's tokens that are the likeliest ones.
    """

    name = "text"
    source_is = "a text file"
    needs_source = True
    generates = False

    def _draft(self, rng: random.Random, depth: float) -> Draft:
        assert self.source is not None
        words = re.findall(r"\s*\S+", read_text(self.source).strip())
        middle = len(words) // 2
        n_slots = (len(words) - middle) // _CONTINUATION // 2
        if n_slots < 1:
            raise OptionError(
                f"expected a text of at least {4 * _CONTINUATION} words in {self.source}, got {len(words)}; give a longer one"
            )
        start = middle + _CONTINUATION * (2 * int(depth * n_slots) + self.seed % 2)
        before = words[:start]

        return Draft(
            prompt_of=lambda n: "".join(before[len(before) - n :]).strip() or words[0],
            question="",
            references=(),
            reference_text="".join(words[start : start + _CONTINUATION]),
            max_new_tokens=0,
            depths=(),
            n_units=len(before),
        )

    def _fill(self, draft: Draft) -> tuple[str, int]:
        prompt, n_tokens = super()._fill(draft)
        assert draft.n_units is not None
        if prompt == draft.prompt_of(draft.n_units):
            raise OptionError(
                f"expected {self.n_tokens} tokens before the middle of {self.source}, got {n_tokens}; choose a smaller "
                "length or a longer file"
            )
        return prompt, n_tokens
