"""Answers of a `Llama`: the parent's calls that sample tokens, with what it gets wrong about them made right."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PromptError, StateError
from ..native.bindings import llama_cpp
from ..policies.protect import field_of
from . import generation
from .completion import as_called, check_response_format, ended_at_first_stop, up_to_stop, whole_characters
from .generation import current_call, known, known_to
from .logprobs import AnswerLogprobs
from .state import StatefulLlama
from .values import check_grammar, checked_stop, message_list, no_unicode

_SAMPLE = inspect.signature(llama_cpp.Llama.sample)


def _noted(message: Any) -> dict[str, Any]:
    """What is protected by: role and content as they are now. The rest of a message need not be one that can be copied."""
    return {name: copy.deepcopy(field_of(message, name)) for name in ("role", "content")}


class AnsweringLlama(StatefulLlama):
    """`StatefulLlama` that checks the arguments of an answer, and mends what the parent makes of it."""

    _draft_model: Any = None
    """as it was given"""

    if not TYPE_CHECKING:  # type checkers and editors see the parent's

        @property
        def draft_model(self) -> Any:
            """As it was given; for the parent, which calls it between two tokens, one during which nobody enters."""
            given = self._draft_model
            guarded = given is not None and self._generating and not self._gate.in_callback
            return self._gate.guarding("the draft model", given) if guarded else given

        @draft_model.setter
        def draft_model(self, given: Any) -> None:
            if given is not None and not self._logits_all:
                raise OptionError(
                    "draft_model: expected it when the Llama is made, which decides what its logits are kept for and whether "
                    "prompts are pruned, got one now; pass draft_model to Llama"
                )
            self._draft_model = given

        @functools.wraps(llama_cpp.Llama.sample)
        def sample(self, *args: Any, **kwargs: Any) -> int:
            bound = _SAMPLE.bind(self, *args, **kwargs).arguments
            if self._generating:  # generate has checked the rest
                self._check_logits(bound.get("idx"))
                return super().sample(*args, **kwargs)
            given, processors = generation.as_given(self._gate, bound)
            check_grammar(given.get("grammar"), self._model.vocab)
            self._check_logits(given.get("idx"))
            token = super().sample(**given)
            processors.check()
            return token

        @functools.wraps(llama_cpp.Llama.create_chat_completion)
        def create_chat_completion(self, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
            messages = message_list(messages)
            check_response_format(kwargs.get("response_format"))
            if "stop" in kwargs:
                kwargs["stop"] = checked_stop(kwargs["stop"])
            try:
                with known(messages=tuple(map(_noted, messages))):
                    return super().create_chat_completion(messages, *args, **kwargs)
            except UnicodeEncodeError as err:
                raise no_unicode("messages", err) from None

    def _check_logits(self, idx: int | None) -> None:
        """Raises StateError where llama.cpp has no logits to sample from: it would end the process."""
        row = -1 if idx is None else idx - self.n_tokens
        if self.n_tokens == 0 or not llama_cpp.llama_get_logits_ith(self.ctx, row):
            raise StateError(
                f"expected logits of an evaluated token to sample from, got none after {self.n_tokens} tokens"
                f"{'' if idx is None else f' for idx {idx}'}; evaluate a token first"
            )

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        kwargs = as_called(kwargs, self._n_vocab)
        check_grammar(kwargs.get("grammar"), self._model.vocab)
        max_tokens = kwargs.get("max_tokens", 16)
        call = replace(current_call(), max_tokens=max_tokens if max_tokens is not None and max_tokens > 0 else None)
        if kwargs.get("stopping_criteria") is not None:
            kwargs["stopping_criteria"] = generation.guarded_criteria(self._gate, kwargs["stopping_criteria"])
        logprobs: AnswerLogprobs | None = None
        if kwargs.get("logprobs") is not None and self._asl.budget is not None and not self._logits_all:
            logprobs, kwargs = AnswerLogprobs.wanted(self, kwargs)
            call = replace(call, logprobs=logprobs)
        chunks = self._completion(known_to(super()._create_completion(*args, **kwargs), call))
        stop = kwargs["stop"]
        if not kwargs.get("stream"):
            echoed = kwargs["prompt"] if kwargs.get("echo") and isinstance(kwargs["prompt"], str) else ""
            results = ended_at_first_stop(chunks, stop, echoed, kwargs.get("suffix") or "", self._last_bytes)
            return logprobs.of_plain(results, len(kwargs["prompt"]), stop) if logprobs else results
        if kwargs.get("logprobs") is not None:
            return chunks
        chunks = whole_characters(chunks, lambda: (self.n_tokens, self._text.sampled), lambda: self._answer(stop))
        return logprobs.of_stream(chunks, len(kwargs["prompt"]), stop) if logprobs else chunks

    def _answer(self, stop: list[str]) -> str:
        """The text after the last prompt, up to a stop string."""
        tokens, n_prompt = self._text.text(), self.last_prefill.prompt_tokens if self.last_prefill else 0
        return up_to_stop(self.detokenize(tokens[n_prompt:], prev_tokens=tokens[:n_prompt]), stop)

    def _last_bytes(self, n_tokens: int) -> bytes:
        tokens = self._text.text()
        return self.detokenize(tokens[-n_tokens:], prev_tokens=tokens[:-n_tokens])

    def _completion(self, chunks: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from chunks
        except ValueError as err:
            # the parent names the decode context's cells, which are not what limits the prompt
            too_long = re.match(r"Requested tokens \((\d+)\) exceed context window", str(err))
            if self._asl.budget is None or too_long is None:
                raise
            raise PromptError.too_long(int(too_long[1]), self._n_ctx) from err
