"""Log-probabilities of an answer's tokens, noted as they are made: the parent reads them off the logits of all tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import OptionError
from ..native.bindings import llama_cpp
from ..policies.contract import Floats
from .completion import stop_at
from .values import Tokens


@dataclass(frozen=True)
class _Noted:
    """A token of an answer."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """token and log-probability, the likeliest first"""


@dataclass
class AnswerLogprobs:
    """What `logprobs` of a completion asks for.

    Args:
        n_top: likeliest tokens to name beside each one.
        detokenize: the bytes of some tokens, given those before them.
        is_left_out: whether a token has no place in an answer.
        logits: those that the newest token was drawn from.
    """

    n_top: int
    detokenize: Callable[[Sequence[int], Sequence[int]], bytes]
    is_left_out: Callable[[int], bool]
    logits: Callable[[], Floats]
    _noted: list[_Noted] = field(default_factory=list)
    _begins: list[int] = field(default_factory=list)
    """where the bytes of each token begin in the answer"""
    _letters: list[int] = field(default_factory=list)
    """the same of its text, in characters: of bytes that are none there is no text"""
    _n_bytes: int = 0
    _n_given: int = 0

    @classmethod
    def wanted(cls, llm: Any, arguments: dict[str, Any]) -> tuple[AnswerLogprobs, dict[str, Any]]:
        """Takes `logprobs` out of a completion's arguments.

        Raises:
            OptionError: it is no number of tokens, or those of the prompt are asked for too.
        """
        n_top = arguments["logprobs"]
        if isinstance(n_top, bool) or not isinstance(n_top, (int, np.integer)) or n_top < 0:
            raise OptionError(f"logprobs: expected a number of tokens, at least 0, got {n_top!r:.60}")
        if arguments.get("echo"):
            raise OptionError(
                "logprobs: expected echo=False beside them, got True, which asks for those of the prompt as well; make the "
                "Llama with logits_all=True, whose answers come from the full cache"
            )

        def is_left_out(token: int) -> bool:  # as by the parent
            return token == llm.token_bos() or bool(llama_cpp.llama_vocab_is_eog(llm._model.vocab, token))

        def logits() -> Floats:
            return np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(llm.n_vocab(),))

        made = cls(int(n_top), lambda tokens, before: llm.detokenize(tokens, prev_tokens=before), is_left_out, logits)
        return made, {name: value for name, value in arguments.items() if name != "logprobs"}

    def noting(self, tokens: Tokens) -> Tokens:
        """The same tokens, each noted when it is made."""
        sent = None
        while True:
            try:
                token = tokens.send(sent)
            except StopIteration:
                return
            self._note(token, self.logits())
            sent = yield token

    def _note(self, token: int, logits: Floats) -> None:
        if self.is_left_out(token):
            return
        logprobs = llama_cpp.Llama.logits_to_logprobs(logits)
        n_top = min(self.n_top, len(logprobs))
        least = np.partition(logprobs, -n_top)[-n_top] if n_top else np.inf
        ids = np.flatnonzero(logprobs >= least)
        order = np.lexsort((ids, logprobs[ids]))[::-1][:n_top]  # of equals the parent names the last one first
        likeliest = tuple((int(i), float(logprobs[i])) for i in ids[order])
        self._begins.append(self._n_bytes)
        self._letters.append(len(_text(self.detokenize(self._tokens(), []))))
        self._n_bytes += len(self.detokenize([token], self._tokens()))
        self._noted.append(_Noted(token, float(logprobs[token]), likeliest))

    def _tokens(self) -> list[int]:
        return [one.token for one in self._noted]

    def of_plain(
        self, results: Iterator[dict[str, Any]], text_offset: int, stop: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """The same answer, which has those of its tokens up to a stop string.

        Args:
            text_offset: where the answer begins, in characters after the prompt's begin.
        """
        for result in results:
            choice = result["choices"][0]
            choice["logprobs"] = self._form(0, self._n_before_stop(choice["finish_reason"], stop), text_offset)
            yield result

    def _n_before_stop(self, finish_reason: str, stop: Sequence[str]) -> int:
        """Tokens that begin before the stop string that ended the answer; all of them, if none did."""
        if finish_reason != "stop":
            return len(self._noted)
        cut = stop_at(self.detokenize(self._tokens(), []), stop)
        return sum(begin < cut for begin in self._begins)

    def _form(self, begin: int, end: int, text_offset: int) -> dict[str, Any]:
        tokens = self._tokens()
        result: dict[str, list[Any]] = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
        for i, one in enumerate(self._noted[begin:end], begin):
            text = _text(self.detokenize([one.token], tokens[:i]))
            top = {_text(self.detokenize([other], tokens[:i])): logprob for other, logprob in one.likeliest}
            result["tokens"].append(text)
            result["text_offset"].append(text_offset + self._letters[i])
            result["token_logprobs"].append(one.logprob)
            result["top_logprobs"].append(top | {text: one.logprob})
        return result

    def of_stream(
        self, chunks: Iterator[dict[str, Any]], text_offset: int, stop: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """The same chunks; each has those of the tokens whose text it begins, the last one those that have no text."""
        n_letters = 0
        for chunk in chunks:
            choice = chunk["choices"][0]
            n_letters += len(choice["text"])
            end = self._n_given
            while end < len(self._noted) and self._letters[end] < n_letters:
                end += 1
            if choice["finish_reason"] is not None:
                end = self._n_before_stop(choice["finish_reason"], stop)
            if end > self._n_given:
                choice["logprobs"] = self._form(self._n_given, end, text_offset)
                self._n_given = end
            yield chunk


def _text(data: bytes) -> str:
    return data.decode("utf-8", "ignore")
