"""What outlives a prompt: saved states, caches and prompt files of a `Llama`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import prompt_file, snapshot
from ..cache.fingerprint import Fingerprint, check_fingerprint, fingerprint_of, settings_number
from ..cache.host_kv import HostKV
from ..cache.prefix import PrunedPrefixCache
from ..cache.snapshot import Snapshot, State
from ..errors import StateError
from ..native.bindings import llama_cpp
from ..native.session import Session
from ..report import PrefillReport
from .options import AslOptions


class SavingLlama(llama_cpp.Llama):
    """`llama_cpp.Llama` whose saved states know what was pruned, for which settings."""

    _asl: AslOptions
    _asl_session: Session | None
    _asl_full: HostKV | None
    _asl_pruned: tuple[int, ...]
    """the prompt whose K/V in the decode context were dropped in part; (): nothing was dropped"""
    _asl_fingerprint: Fingerprint
    """of states, as the object was made: its attributes, and the file under its path, may change later"""
    _asl_sampled: int | None
    """last token of the answer; the parent does not evaluate it"""
    _n_ctx: int
    _asl_max_tokens: int | None
    """of the completion that is about to generate"""
    last_prefill: PrefillReport | None
    """what happened to the last prompt; None before the first one"""

    @property
    def _asl_n_pruned(self) -> int:
        return len(self._asl_pruned)

    def _goes_on(self, tokens: list[int]) -> bool:
        """Whether this prompt starts with all that was evaluated, the prompt that was pruned included."""
        held = self._evaluated() + self._unevaluated()
        return self.n_tokens >= max(self._asl_n_pruned, 1) and tokens[: len(held)] == held

    def _check_whole(self) -> None:
        """Raises StateError if n_tokens was set to less than the pruned prompt."""
        if self.n_tokens < self._asl_n_pruned:
            raise StateError(
                f"expected to go on from all {self._asl_n_pruned} tokens of the pruned prompt, got n_tokens = "
                f"{self.n_tokens}; call reset()"
            )

    def _evaluated(self) -> list[int]:
        """The tokens up to n_tokens; those of a pruned prompt as they were, whatever was written to input_ids since."""
        self.input_ids[: self._asl_n_pruned] = self._asl_pruned
        return self._input_ids.tolist()

    def _trim_cells(self) -> None:
        """Frees cells after n_tokens: an abandoned stream's, or because n_tokens was set to less.

        The logits there are were those of the last token that goes.
        """
        if snapshot.n_evaluated(self.ctx) > self.n_tokens:
            self._requires_eval = True
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.ctx), 0, self.n_tokens, -1)

    def _unevaluated(self) -> list[int]:
        """The answer's last token, if it is text: it was sampled and given out, but never evaluated."""
        token = self._asl_sampled
        if token is None or llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
            return []
        return [token]

    @property
    def cache(self) -> Any:
        """What `set_cache` was given; under pruning, states in it are found only by prompts that they serve."""
        return self._asl_cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        if isinstance(cache, PrunedPrefixCache):  # another object's
            cache = cache.inner
        if cache is not None and self._asl_session is not None:
            cache = PrunedPrefixCache(cache, settings_number(self._asl_fingerprint))
        self._asl_cache = cache

    def _load_cached(self, tokens: Sequence[int]) -> bool:
        """Whether the cache has a state that serves this prompt; it is loaded then.

        The parent looks there too, but takes a state only if more tokens of it than of what the context holds stand
        at the prompt's start, whether they can be used or not.
        """
        if not isinstance(self.cache, PrunedPrefixCache):
            return False
        try:
            self.load_state(self.cache[tokens])
        except KeyError:
            return False
        return True

    def _fingerprint_now(self) -> Fingerprint:
        lora = (self.lora_path, self.lora_scale) if self.lora_path else None
        return fingerprint_of(
            self.model, self.model_path, self.context_params, self._n_ctx, lora, self._asl.deciding_what_is_kept()
        )

    def save_state(self) -> llama_cpp.LlamaState:
        """`llama_cpp.Llama.save_state`; under pruning: the kept cells and the next logits, without a matrix of scores."""
        return super().save_state() if self._asl_session is None else self._saved()

    def _saved(self) -> State:
        self._check_whole()
        self._trim_cells()
        unevaluated = self._unevaluated()
        held = Snapshot(
            tokens=tuple(self._evaluated()),
            sampled=unevaluated[0] if unevaluated else None,
            n_pruned=len(self._asl_pruned),
            first_cells=snapshot.first_cells(self.ctx),
            logits=None if self._requires_eval else snapshot.last_logits(self.ctx, self._n_vocab),
        )
        return State(held, snapshot.take(self.ctx), self._seed, self._asl_fingerprint)

    def load_state(self, saved: llama_cpp.LlamaState) -> None:
        """`llama_cpp.Llama.load_state`, for states of the same model file, versions and settings.

        Raises:
            StateError: the state belongs elsewhere; this object stays as it was. Or llama.cpp refuses its cells; then
                this object is reset.
        """
        if self._asl_session is None and not isinstance(saved, State):
            super().load_state(saved)
            return
        if self._asl_session is None or not isinstance(saved, State):
            ours, theirs = ("with", "without") if self._asl_session else ("without", "with")
            raise StateError(f"expected a state saved {ours} pruning, got one saved {theirs}; prefill the prompt again")
        check_fingerprint(saved.origin, self._asl_fingerprint)
        if len(saved.held.text_tokens) >= self._n_ctx:
            raise StateError(
                f"expected fewer than n_ctx = {self._n_ctx} tokens, got a state of {len(saved.held.text_tokens)}; raise n_ctx"
            )
        if len(saved.held.tokens) < saved.held.n_pruned:
            raise StateError(
                f"expected a state of all {saved.held.n_pruned} tokens of the pruned prompt, got one of "
                f"{len(saved.held.tokens)}; prefill the prompt again"
            )
        self.reset()
        snapshot.put(self.ctx, saved.held, saved.llama_state)
        # not the arrays that llama_cpp's states have for anyone to change
        self.n_tokens = len(saved.held.tokens)
        self.input_ids[: self.n_tokens] = saved.held.tokens
        self._seed = saved.seed
        self._requires_eval = saved.held.logits is None
        self._asl_sampled = saved.held.sampled
        self._asl_pruned = saved.held.tokens[: saved.held.n_pruned]

    def __getstate__(self) -> dict[str, Any]:
        """The arguments that make this object again: for pickling and copies."""
        fields = super().__getstate__()
        if self._asl.budget is not None:
            fields |= self._asl.to_kwargs() | {"n_ctx": self._n_ctx}
        if self._asl_session is not None:
            # the parent's are cut to the KV cells
            fields |= self._asl_session.chunks
        return fields

    def prefill(self, prompt: str | Sequence[int]) -> PrefillReport:
        """Prefills a prompt under the budget, without an answer: for `save_prompt`, or ahead of a question.

        What is kept is chosen by the prompt's own last tokens. Prompts that go on from it need no prefill of it.

        Args:
            prompt: a text (special tokens are parsed), or token ids.

        Raises:
            PromptError, ContextFullError, PrefillCancelled: as `generate`.
        """
        self._asl_max_tokens = 1
        answer = self.generate(self._tokens_of(prompt) if isinstance(prompt, str) else prompt)
        next(answer)
        answer.close()
        self._asl_sampled = None
        assert self.last_prefill is not None
        return self.last_prefill

    def _tokens_of(self, text: str) -> list[int]:
        """As the parent's create_completion tokenises a prompt."""
        bos = self.token_bos()
        starts = [bos] if self._model.add_bos_token() and bos >= 0 else []
        return starts + self.tokenize(text.encode("utf-8"), add_bos=False, special=True)

    def save_prompt(self, path: str | Path) -> None:
        """Writes what was evaluated last, pruned as it is, to a file that `load_prompt` reads in no time.

        With `asl_full_kv` K/V of all tokens go along: later questions about the prompt select from them.

        Raises:
            StateError: nothing was evaluated yet, this object does not prune, or n_tokens was set to less than the pruned
                prompt.
            OSError: the folder cannot be written; an existing file is as it was.
        """
        if self._asl_session is None or self.n_tokens == 0:
            raise StateError("expected an evaluated prompt on a Llama with asl_budget, got none; run a prompt first")
        prompt_file.save(Path(path), self._saved(), self._asl_full)

    def load_prompt(self, path: str | Path) -> list[int]:
        """Reads a file of `save_prompt`. Prompts that go on from its tokens, which it returns, need no prefill of them.

        Raises:
            StateError: no such file, it is damaged, or belongs to another model, version or setting.
        """
        saved, (tokens, layers, hidden) = prompt_file.load(
            Path(path), self._asl_fingerprint if self._asl_session else {}
        )
        self.load_state(saved)
        if self._asl_full is not None:
            self._asl_full.put(tokens, 0, layers, hidden)
        return list(saved.held.text_tokens)
