"""What outlives a prompt: saved states, caches and prompt files of a `Llama`."""

from __future__ import annotations

import warnings
from collections import abc
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..cache import prompt_file
from ..cache.fingerprint import Fingerprint, check_fingerprint, fingerprint_of, with_adapters
from ..cache.form import Form
from ..cache.prefix import PrunedPrefixCache
from ..cache.snapshot import NOTHING, Snapshot, State
from ..engine.sequence import Sequence
from ..engine.transcript import Transcript, taken_back
from ..errors import OptionTypeError, StateError, shown
from ..native import context
from ..native.bindings import llama_cpp
from ..native.session import Session
from ..report import PrefillReport
from .gate import Gate
from .generation import known
from .options import AslOptions
from .values import check_text, checked_integer, checked_path, is_message


class StatefulLlama(llama_cpp.Llama):
    """`llama_cpp.Llama` whose saved states know what was pruned, for which settings."""

    _asl: AslOptions
    _asl_session: Session | None
    _sequence: Sequence | None
    """what decides about prompts; None: nothing is pruned"""
    _text: Transcript
    _gate: Gate
    _asl_fingerprint: Fingerprint
    """of states, apart from adapters, as the object was made: its attributes, and the file under its path, may change later"""
    _asl_adapters = "none"
    """what the K/V of the last prompt were computed with"""
    _n_ctx: int
    last_prefill: PrefillReport | None
    """what happened to the last prompt; None before the first one"""

    def _forget(self) -> None:
        """`reset`, apart from K/V on the host."""
        raise NotImplementedError

    # The parent's attributes are the transcript's.

    @property
    def n_tokens(self) -> int:
        """Tokens that were evaluated, kept or not."""
        return self._text.n_tokens

    @n_tokens.setter
    def n_tokens(self, value: int) -> None:
        self._text.n_tokens = checked_integer("n_tokens", value, range(2**31))

    @property
    def input_ids(self) -> Any:
        """int32 [n_ctx]: the tokens, of which the first n_tokens were evaluated."""
        return self._text.ids

    @input_ids.setter
    def input_ids(self, value: Any) -> None:
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
            raise OptionTypeError(f"input_ids: expected an array of n_ctx integers, got {shown(value)}")
        self._text.ids = value

    @property
    def _requires_eval(self) -> bool:
        return self._text.needs_eval

    @_requires_eval.setter
    def _requires_eval(self, value: bool) -> None:
        self._text.needs_eval = value

    @property
    def cache(self) -> Any:
        """What `set_cache` was given; under pruning, states in it are found only by prompts that they serve."""
        return self._asl_cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        if cache is not None and not (hasattr(type(cache), "__getitem__") and hasattr(type(cache), "__setitem__")):
            raise OptionTypeError(
                f"cache: expected a LlamaRAMCache, a LlamaDiskCache or their like, got {shown(cache)}"
            )
        if isinstance(cache, PrunedPrefixCache):  # another object's
            cache = cache.inner
        if cache is not None and self._asl_session is not None:
            cache = PrunedPrefixCache(cache, self._origin, self._n_ctx)
        self._asl_cache = cache

    def _load_cached(self, tokens: abc.Sequence[int]) -> bool:
        """Whether the cache has a state that serves this prompt; it is loaded then.

        The parent looks there too, but takes a state only if more tokens of it than of what the context holds stand
        at the prompt's start, whether they can be used or not.
        """
        if not isinstance(self.cache, PrunedPrefixCache):
            return False
        try:
            self._load_state(self.cache[tokens])
        except KeyError:
            return False
        except StateError as err:
            _warn_of_cached(err)
            return False
        return True

    def _origin(self) -> Fingerprint:
        """The fingerprint that states have which the context computes now."""
        self._gate.check_open()
        return with_adapters(self._asl_fingerprint, self.ctx)

    def _fingerprint_now(self) -> Fingerprint:
        return fingerprint_of(
            self.model,
            self.model_path,
            self.context_params,
            self._n_ctx,
            self.kv_overrides,
            self._asl.deciding_what_is_kept(),
        )

    def save_state(self) -> llama_cpp.LlamaState:
        """`llama_cpp.Llama.save_state`; under pruning: the kept cells and the next logits, without a matrix of scores."""
        return super().save_state() if self._asl_session is None else self._saved()

    def _saved(self) -> State:
        assert self._sequence is not None
        self._text.check_whole()
        if (now := context.adapters(self.ctx)) != self._asl_adapters:
            raise StateError(
                f"expected K/V of the LoRA adapters and control vectors that are set now ({now}), got K/V of others "
                f"({self._asl_adapters}); run the prompt again, or set those"
            )
        n_tokens, n_evaluated = self.n_tokens, self._sequence.place.n_evaluated
        self._sequence.trim()
        if self.n_tokens < n_tokens:
            raise taken_back(n_evaluated, n_tokens)
        if self.n_tokens == 0:
            return State(NOTHING, b"", self._seed, self._origin())
        held = Snapshot(
            tokens=tuple(self._text.evaluated()),
            sampled=self._text.sampled,
            n_pruned=len(self._text.pruned),
            first_cells=context.first_cells(self.ctx),
            logits=None if self._text.needs_eval else context.last_logits(self.ctx),
        )
        return State(held, context.take_cells(self.ctx), self._seed, self._origin())

    def load_state(self, saved: llama_cpp.LlamaState) -> None:
        """`llama_cpp.Llama.load_state`, for states of the same model file, versions and settings.

        Raises:
            StateError: the state belongs elsewhere; this object stays as it was. Or llama.cpp refuses its cells; then
                this object is reset.
        """
        try:
            self._load_state(saved)
        except StateError as err:
            if not self._gate.nested:
                raise
            _warn_of_cached(err)  # the parent's completion takes it for a part of the prompt

    def _load_state(self, saved: llama_cpp.LlamaState) -> None:
        if self._asl_session is None and not isinstance(saved, State):
            super().load_state(saved)
            return
        if self._asl_session is None or not isinstance(saved, State):
            ours, theirs = ("with", "without") if self._asl_session else ("without", "with")
            raise StateError(f"expected a state saved {ours} pruning, got one saved {theirs}; prefill the prompt again")
        check_fingerprint(saved.origin, self._origin())
        if len(saved.held.tokens) > self._n_ctx:
            raise StateError(
                f"expected at most n_ctx = {self._n_ctx} tokens, got a state of {len(saved.held.tokens)}; raise n_ctx"
            )
        if saved.held.tokens == () and saved.held.logits is None and saved.held == NOTHING:
            self._forget()
            self._seed = saved.seed
            return
        try:
            self._asl_form().check(saved.held)
        except ValueError as err:
            raise StateError(
                f"expected a state that save_state has made, got another: {err}; prefill the prompt again"
            ) from err
        held = saved.held
        self._forget()
        if not context.put_cells(self.ctx, saved.llama_state, held.first_cells, held.logits):
            raise StateError(
                f"expected a state of this model that fits {llama_cpp.llama_n_ctx(self.ctx)} KV cells, llama.cpp refuses the "
                f"one of {len(held.tokens)} tokens; pass a larger asl_decode_ctx, or prefill the prompt again"
            )
        if (n_cells := context.n_evaluated(self.ctx)) != len(held.tokens):
            context.remove_from(self.ctx, 0)
            raise StateError(
                f"expected KV cells of {len(held.tokens)} tokens, got cells of {n_cells}; prefill the prompt again"
            )
        if (first := max(held.first_cells, default=0)) >= (n_used := self._asl_session.info().n_cells_used):
            context.remove_from(self.ctx, 0)
            raise StateError(f"expected layers that hold some of {n_used} cells, got one whose first cell is {first}")
        # not the arrays that llama_cpp's states have for anyone to change
        self._text.set(held.tokens, n_pruned=held.n_pruned, needs_eval=held.logits is None, sampled=held.sampled)
        self._seed, self._asl_adapters = saved.seed, context.adapters(self.ctx)

    def _note_adapters(self) -> None:
        """Before tokens are evaluated after others: by what their K/V are computed."""
        if (now := context.adapters(self.ctx)) != self._asl_adapters:
            self._asl_adapters = f"{self._asl_adapters}, then {now}" if self.n_tokens else now

    def _asl_form(self) -> Form:
        n_hidden = self._asl_session.info().n_hidden if self._asl_session else 0
        return Form.of(self.model, self._sequence.host if self._sequence else None, n_hidden)

    def __getstate__(self) -> dict[str, Any]:
        """The arguments that make this object again: for pickling and copies."""
        fields = super().__getstate__()
        if self._asl.budget is not None:
            fields |= self._asl.to_kwargs() | {"n_ctx": self._n_ctx}
        if self._asl_session is not None:
            # the parent's are cut to the KV cells
            fields |= self._asl_session.chunks
        return fields

    def prefill(self, prompt: str | abc.Sequence[int] | abc.Sequence[abc.Mapping[str, Any]]) -> PrefillReport:
        """Prefills a prompt under the budget, without an answer: for `save_prompt`, or ahead of a question.

        What is kept is chosen by the prompt's own last tokens, and no question need be among them. Prompts that go on from
        it need no prefill of it; with `asl_full_kv` they choose again, and without it an UnaskedWarning says that they do
        not.

        Args:
            prompt: a text (special tokens are parsed), token ids, or the messages of a chat. Questions of a chat begin as its
                template does: for those, `prefill([{"role": "user", "content": document}])`.

        Raises:
            OptionTypeError: it is none of these.
            PromptError, ContextFullError, PrefillCancelled: as `generate`.
        """
        is_array = isinstance(prompt, np.ndarray) and prompt.ndim > 0
        if not (is_array or isinstance(prompt, abc.Sequence)) or isinstance(prompt, (bytes, bytearray, memoryview)):
            raise OptionTypeError(f"prompt: expected a text, token ids or the messages of a chat, got {shown(prompt)}")
        is_chat = not isinstance(prompt, str) and len(prompt) and is_message(prompt[0])
        if is_chat:
            self.create_chat_completion(cast(Any, prompt), max_tokens=1)
        else:
            with known(max_tokens=1):
                answer = self.generate(self._tokens_of(prompt) if isinstance(prompt, str) else cast(Any, prompt))
                next(answer)
            answer.close()
        self._text.sampled, self._text.unasked = None, bool(self._text.pruned)
        assert self.last_prefill is not None
        return self.last_prefill

    def _tokens_of(self, text: str) -> list[int]:
        """As the parent's create_completion tokenises a prompt."""
        check_text("prompt", text)
        bos = self.token_bos()
        starts = [bos] if self._model.add_bos_token() and bos >= 0 else []
        return starts + self.tokenize(text.encode("utf-8"), add_bos=False, special=True)

    def save_prompt(self, path: str | Path) -> None:
        """Writes what was evaluated last, pruned as it is, to a file that `load_prompt` reads in no time.

        With `asl_full_kv` K/V of all tokens go along: later questions about the prompt select from them. Without it they are
        answered from what the saved prompt's own last tokens chose, with an UnaskedWarning.

        Raises:
            StateError: nothing was evaluated yet, this object does not prune, or n_tokens was set to less than the pruned
                prompt.
            OptionTypeError, OptionError: the path is none.
            OSError: the folder cannot be written; an existing file is as it was.
        """
        if self._asl_session is None or self.n_tokens == 0:
            raise StateError("expected an evaluated prompt on a Llama with asl_budget, got none; run a prompt first")
        prompt_file.save(checked_path(path), self._saved(), self._sequence.host if self._sequence else None)

    def load_prompt(self, path: str | Path) -> list[int]:
        """Reads a file of `save_prompt`. Prompts that go on from its tokens, which it returns, need no prefill of them.

        Raises:
            StateError: no such file, it is damaged, or belongs to another model, version or setting.
            OptionTypeError, OptionError: the path is none.
        """
        if self._asl_session is None:
            raise StateError("expected a Llama with asl_budget to load a prompt, got one without; pass asl_budget")
        saved, (tokens, layers, hidden, states) = prompt_file.load(checked_path(path), self._origin(), self._asl_form())
        self._load_state(saved)
        self._text.unasked = saved.held.n_pruned > 0
        if self._sequence is not None and self._sequence.host is not None:
            self._sequence.host.put(tokens, 0, layers, hidden, states)
        return list(saved.held.text_tokens)


def _warn_of_cached(err: StateError) -> None:
    """A cache has a state that this object cannot use: the prompt begins anew."""
    warnings.warn(f"a state in the cache is not used: {err}", RuntimeWarning, stacklevel=3)
