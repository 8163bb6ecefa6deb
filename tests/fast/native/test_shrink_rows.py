"""Session.shrink_rows(): what is left is what keeping those rows at once would have left, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.errors import NativeError, OptionError
from harness import F16, F32, Q8_0, Context, Options, prompt
from pairs import pairs
from twins import random_index

OPTIONS = Options(n_batch=40, n_ubatch=24)
N_TOKENS, N_HELD, N_KEPT = 90, 61, 33
TURN = prompt(70, seed=5)
with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])


def choose(seed: int, n_layer: int, n_head_kv: int | None, n_tokens: int = N_TOKENS) -> list[tuple]:
    """Of each layer: tokens held at first, which of these rows stay, and the tokens that those are."""
    rng = np.random.default_rng(seed)
    chosen = []
    for _ in range(n_layer):
        held = random_index(rng, n_tokens, N_HELD, n_head_kv)
        places = random_index(rng, N_HELD, N_KEPT, n_head_kv)
        chosen.append((held, places, np.take_along_axis(held, places, axis=-1)))
    return chosen


def outcome(context: Context) -> tuple:
    return context.get_state(), context.logits().tolist(), context.greedy(3), context.logits().tolist()


# heads of 32 and 64, in q8_0: 34 bytes, by the host; 68, by the device
@pairs(per_head=[True, False], flash=[False, True], kv=[F16, Q8_0, F32], head_dim=[32, 64])
def test_rows_of_every_layer(load_tiny, per_head, flash, kv, head_dim):
    model = load_tiny("llama", head_dim=head_dim)
    layers = choose(1, model.n_layer, model.n_head_kv if per_head else None)
    found = []
    with model.context(replace(OPTIONS, flash=flash, kv=kv)) as context:
        session = context.session()
        for late in (False, True):
            session.begin(prompt(N_TOKENS), 8)
            for held, _, kept in layers:
                session.run(1, False)
                session.keep_rows(held if late else kept)
            for layer, (_, places, _) in enumerate(layers if late else []):
                session.shrink_rows(layer, places)
            session.finish()
            assert session.info().n_cells_used == N_KEPT
            found.append(outcome(context))
    assert found[0] == found[1]


@with_flash
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_before_a_selection(load_tiny, architecture, flash):
    """Rows of the layers up to a selection shrink, then tokens go; sliding layers keep theirs by themselves."""
    model = load_tiny(architecture)
    found = []
    with model.context(replace(OPTIONS, flash=flash)) as context:
        session = context.session()
        full = [layer for layer, slides in enumerate(session.sliding) if not slides][:2]
        layers = choose(2, len(full), model.n_head_kv)
        tokens = np.r_[: N_KEPT - 8, N_TOKENS - 8 : N_TOKENS].astype(np.int32)
        for late in (False, True):
            session.begin(prompt(N_TOKENS), 8)
            for layer, (held, _, kept) in zip(full, layers):
                session.run(layer + 1 - session.info().next_layer, False)
                session.keep_rows(held if late else kept)
            for layer, (_, places, _) in zip(full, layers if late else []):
                session.shrink_rows(layer, places)
            session.keep_tokens(tokens)
            session.finish()
            found.append(outcome(context))
    assert found[0] == found[1]


def test_layers_with_fewer_rows_than_the_first(load_tiny):
    model = load_tiny("llama")
    layers = choose(3, model.n_layer, model.n_head_kv)
    found = []
    with model.context(OPTIONS) as context:
        session = context.session()
        for late in (False, True):
            session.begin(prompt(N_TOKENS), 8)
            for layer, (held, _, kept) in enumerate(layers):
                session.run(1, False)
                session.keep_rows(held if late else kept[:, layer:])
            for layer, (_, places, _) in enumerate(layers if late else []):
                session.shrink_rows(layer, places[:, layer:])
            session.finish()
            found.append((context.logits().tolist(), context.greedy(3), context.logits().tolist()))
    assert found[0] == found[1]


@with_flash
def test_after_a_past(load_tiny, flash):
    """Of a turn only its own rows count, and the past stays where it is."""
    model = load_tiny("llama")
    layers = choose(4, model.n_layer, None, len(TURN))
    found = []
    for late in (False, True):
        with model.context(replace(OPTIONS, flash=flash)) as context:
            session = context.session()
            session.begin(prompt(N_TOKENS), 8)
            session.finish()
            session.extend(TURN, 8)
            past = np.arange(N_TOKENS, dtype=np.int32)
            for held, _, kept in layers:
                session.run(1, False)
                session.keep_rows(np.r_[past, N_TOKENS + (held if late else kept)].astype(np.int32))
            for layer, (_, places, _) in enumerate(layers if late else []):
                session.shrink_rows(layer, places)
            session.finish()
            assert session.info().n_cells_used == N_TOKENS + N_KEPT
            found.append(outcome(context))
    assert found[0] == found[1]


def test_what_is_refused(load_tiny):
    model = load_tiny("llama")
    held, places, _ = choose(5, 1, model.n_head_kv)[0]
    with model.context(OPTIONS) as context:
        session = context.session()
        with pytest.raises(NativeError, match="no prefill is open"):
            session.shrink_rows(0, places)
        session.begin(prompt(N_TOKENS), 8)
        session.run(1, False)
        with pytest.raises(NativeError, match="expected a layer that keeps rows .* layer 0 keeps none"):
            session.shrink_rows(0, places)
        session.keep_rows(held)
        session.run(1, False)
        session.keep_rows(held)
        for wrong, message in (
            (places + 1, "indices below 61, got 61"),
            (places[:, ::-1], "expected increasing row indices"),
            (places[:, :-1], "expected the last row, 60, to be kept"),
            (np.arange(N_HELD + 1, dtype=np.int32), f"expected 1 to {N_HELD} rows to keep, got {N_HELD + 1}"),
        ):
            with pytest.raises(OptionError, match=message):
                session.shrink_rows(0, np.ascontiguousarray(wrong))
        for layer in (-1, 2, model.n_layer):
            with pytest.raises(NativeError, match=f"layer {layer} keeps none"):
                session.shrink_rows(layer, places)
        session.shrink_rows(0, places)
        with pytest.raises(OptionError, match=f"expected at most {N_KEPT} rows, as in the first layer"):
            session.shrink_rows(1, np.arange(N_HELD, dtype=np.int32))
        session.keep_tokens(np.r_[: N_KEPT - 8, N_TOKENS - 8 : N_TOKENS].astype(np.int32))
        with pytest.raises(NativeError, match="expected rows of layer 1 to be shrunk"):
            session.finish()
        session.shrink_rows(1, places)
        session.finish()
