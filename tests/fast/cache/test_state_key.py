"""Keys of states in llama_cpp's caches: what a state serves, written so that nobody else's look-up finds it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asl_gguf.cache.fingerprint import settings_digest
from asl_gguf.cache.prefix import StateKey
from harness import llama_cpp

tokens = st.lists(st.integers(0, 9), max_size=8).map(tuple)
keys = st.builds(
    StateKey, st.dictionaries(st.sampled_from("ab"), st.text(max_size=2)).map(settings_digest), st.booleans(), tokens
)


@given(keys)
def test_a_stored_key_is_read_again(key):
    assert StateKey.parse(key.stored()) == key


@given(st.one_of(tokens, st.text(), st.tuples(st.text(), st.integers()), st.integers()))
def test_keys_of_others_are_none_of_ours(stored):
    assert StateKey.parse(stored) is None


@given(keys, tokens)
def test_a_pruned_state_serves_what_goes_on_from_all_of_it(key, prompt):
    n_common = llama_cpp.Llama.longest_token_prefix(key.tokens, prompt)
    whole = prompt[: len(key.tokens)] == key.tokens
    assert key.n_shared(prompt) == (n_common if whole or not key.pruned else 0)


@given(keys, keys)
def test_no_look_up_by_tokens_crosses_settings(key, other):
    """A `llama_cpp.Llama` finds no state of ours, and objects find those of their own settings alone."""
    cache = llama_cpp.LlamaRAMCache()
    cache.cache_state[key.stored()] = None
    assert key.tokens not in cache
    if key.tokens and (other.settings, other.pruned) != (key.settings, key.pruned):
        assert other.stored() not in cache
