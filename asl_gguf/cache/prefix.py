"""`Llama.set_cache` under pruning: a cache hands out states only where they serve the prompt."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..native.bindings import llama_cpp
from .fingerprint import Fingerprint, settings_digest
from .snapshot import State

_WHOLE, _PRUNED = "asl_gguf whole ", "asl_gguf pruned "


@dataclass(frozen=True)
class StateKey:
    """What a state serves: prompts under its settings, with its tokens at their start.

    Attributes:
        settings: `settings_digest` of what it was computed with.
        pruned: it serves what goes on from all its tokens and nothing less; otherwise any common start of tokens.
    """

    settings: str
    pruned: bool
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, state: State) -> StateKey:
        return cls(settings_digest(state.origin), state.held.n_pruned > 0, state.held.text_tokens)

    @classmethod
    def parse(cls, stored: object) -> StateKey | None:
        """Reads what `stored` made; None: another program's key, such as the plain tokens of a `llama_cpp.Llama`."""
        if isinstance(stored, tuple) and stored and isinstance(stored[0], str):
            for mark in (_WHOLE, _PRUNED):
                if stored[0].startswith(mark):
                    return cls(stored[0].removeprefix(mark), mark == _PRUNED, stored[1:])
        return None

    def stored(self) -> tuple[Any, ...]:
        """The key in a cache of llama_cpp's, which compares keys item by item: a text in front equals no token."""
        return (f"{_PRUNED if self.pruned else _WHOLE}{self.settings}", *self.tokens)

    def n_shared(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens the state serves."""
        n_shared = llama_cpp.Llama.longest_token_prefix(self.tokens, prompt)
        return 0 if self.pruned and n_shared < len(self.tokens) else n_shared


class PrunedPrefixCache(llama_cpp.llama_cache.BaseLlamaCache):
    """A user's cache, as one `Llama` sees it. States lie under a `StateKey`, so that objects may share a cache.

    Args:
        origin: what the `Llama` computes K/V with now.
        n_ctx: tokens that it has room for; objects with more may share the cache.
    """

    def __init__(self, cache: Any, origin: Callable[[], Fingerprint], n_ctx: int) -> None:
        super().__init__(getattr(cache, "capacity_bytes", 0))  # a cache of the user's own need not have one
        self.inner = cache
        self._origin = origin
        self._n_ctx = n_ctx
        self._own_keys: dict[StateKey, None] = {}

    @property
    def cache_size(self) -> int:
        return int(self.inner.cache_size)

    def __getitem__(self, key: Sequence[int]) -> State:
        prompt, settings = tuple(key), settings_digest(self._origin())
        shared = {stored: stored.n_shared(prompt) for stored in self._keys() if stored.settings == settings}
        for stored in sorted(shared, key=lambda stored: shared[stored], reverse=True):
            if shared[stored] and self._fits(state := self._get(stored)):
                return state
        # of a cache of the user's own, objects that share it know only the keys they set
        for pruned in (True, False):
            state = self._look_up(StateKey(settings, pruned, prompt))
            if self._fits(state) and (found := StateKey.of(state)).settings == settings and found.n_shared(prompt):
                return state
        raise KeyError("no state serves this prompt")

    def _fits(self, state: object) -> TypeGuard[State]:
        return isinstance(state, State) and len(state.held.tokens) <= self._n_ctx

    def __contains__(self, key: Sequence[int]) -> bool:
        try:
            return bool(self[key])
        except KeyError:
            return False

    def __setitem__(self, key: Sequence[int], value: llama_cpp.LlamaState) -> None:
        assert isinstance(value, State)  # what the `Llama` that this cache was made for saves
        ours = StateKey.of(value)
        # LlamaDiskCache reports each step on stderr
        with contextlib.redirect_stderr(io.StringIO()):
            self.inner[ours.stored()] = value
        self._own_keys[ours] = None

    def _keys(self) -> Iterable[StateKey]:
        if isinstance(self.inner, llama_cpp.LlamaRAMCache):
            return filter(None, map(StateKey.parse, list(self.inner.cache_state)))
        if isinstance(self.inner, llama_cpp.LlamaDiskCache):
            return filter(None, map(StateKey.parse, self.inner.cache.iterkeys()))
        return list(self._own_keys)

    def _get(self, key: StateKey) -> Any:
        """What lies under exactly this key: a cache's own look-up may take a longer one, or drop what it returns."""
        if isinstance(self.inner, llama_cpp.LlamaRAMCache):
            self.inner.cache_state.move_to_end(key.stored())
            return self.inner.cache_state[key.stored()]
        if isinstance(self.inner, llama_cpp.LlamaDiskCache):
            return self.inner.cache.get(key.stored())
        state = self._look_up(key)
        return state if isinstance(state, State) and StateKey.of(state) == key else None

    def _look_up(self, key: StateKey) -> Any:
        """What a cache of the user's own finds."""
        known = isinstance(self.inner, (llama_cpp.LlamaRAMCache, llama_cpp.LlamaDiskCache))
        try:
            return None if known else self.inner[key.stored()]
        except KeyError:
            return None
