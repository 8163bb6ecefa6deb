"""`Llama.set_cache` under pruning: a cache hands out states only where they serve the prompt."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..native.bindings import llama_cpp
from .snapshot import State

_Key = tuple[int, ...]


class PrunedPrefixCache(llama_cpp.llama_cache.BaseLlamaCache):
    """A user's cache, as one `Llama` sees it.

    llama_cpp's caches are keyed by tokens alone and return what has the longest common start. Here a number for the
    settings stands in front of the tokens, so that objects may share a cache, and a state of a pruned prompt is found
    only by a prompt that goes on from the whole of it.

    Args:
        settings: the settings' number now: even; the odd one after it marks keys of pruned states.
    """

    def __init__(self, cache: Any, settings: Callable[[], int]) -> None:
        super().__init__(cache.capacity_bytes)
        self.inner = cache
        self._settings_now = settings
        self._settings = 0  # as of the look-up that runs
        self._own_keys: dict[_Key, None] = {}

    @property
    def cache_size(self) -> int:
        return int(self.inner.cache_size)

    def __getitem__(self, key: Sequence[int]) -> State:
        prompt, self._settings = tuple(key), self._settings_now()
        shared = {stored: self._n_shared(stored, prompt) for stored in self._keys()}
        for stored in sorted(shared, key=lambda stored: shared[stored], reverse=True):
            if shared[stored] and isinstance(state := self._get(stored), State):
                return state
        # of a cache of the user's own, objects that share it know only the keys they set
        for number in (self._settings + 1, self._settings):
            state = self._look_up((number, *prompt))
            if isinstance(state, State) and self._n_shared(self._key_of(state), prompt):
                return state
        raise KeyError("no state serves this prompt")

    def __contains__(self, key: Sequence[int]) -> bool:
        try:
            return bool(self[key])
        except KeyError:
            return False

    def __setitem__(self, key: Sequence[int], value: llama_cpp.LlamaState) -> None:
        assert isinstance(value, State)  # what the `Llama` that this cache was made for saves
        self._settings = self._settings_now()
        stored = self._key_of(value)
        # LlamaDiskCache reports each step on stderr
        with contextlib.redirect_stderr(io.StringIO()):
            self.inner[stored] = value
        self._own_keys[stored] = None

    def _key_of(self, state: State) -> _Key:
        return (self._settings + (state.held.n_pruned > 0), *state.held.text_tokens)

    def _n_shared(self, stored: _Key, prompt: _Key) -> int:
        """How many of the prompt's first tokens the state under this key serves."""
        if stored[0] not in (self._settings, self._settings + 1):
            return 0
        n_shared = llama_cpp.Llama.longest_token_prefix(stored[1:], prompt)
        return n_shared if stored[0] == self._settings or n_shared == len(stored) - 1 else 0

    def _keys(self) -> Iterable[_Key]:
        if isinstance(self.inner, llama_cpp.LlamaRAMCache):
            return list(self.inner.cache_state)
        if isinstance(self.inner, llama_cpp.LlamaDiskCache):
            return [key for key in self.inner.cache.iterkeys() if isinstance(key, tuple)]
        return list(self._own_keys)

    def _get(self, stored: _Key) -> Any:
        """What lies under exactly this key: a cache's own look-up may take a longer one, or drop what it returns."""
        if isinstance(self.inner, llama_cpp.LlamaRAMCache):
            self.inner.cache_state.move_to_end(stored)
            return self.inner.cache_state[stored]
        if isinstance(self.inner, llama_cpp.LlamaDiskCache):
            return self.inner.cache.get(stored)
        state = self._look_up(stored)
        return state if isinstance(state, State) and self._key_of(state) == stored else None

    def _look_up(self, stored: _Key) -> Any:
        """What a cache of the user's own finds."""
        known = isinstance(self.inner, (llama_cpp.LlamaRAMCache, llama_cpp.LlamaDiskCache))
        try:
            return None if known else self.inner[stored]
        except KeyError:
            return None
