"""Prompt files and states that somebody has written: a right digest, and contents that no prefill leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asl_gguf import StateError
from prompt_files import parts_of, rewritten
from tiny_llama import DOCUMENT, N_LAYER, QUESTIONS, Make, greedy

EVEN = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": "snapkv"}
UNEVEN = EVEN | {"asl_policy": "pyramidinfer"}
ASKED = DOCUMENT + QUESTIONS[0]


def changed_first(cells: list[int]) -> Any:
    return lambda parts: parts | {"first_cells": np.array(cells, np.int32)}


def changed_logits(value: float) -> Any:
    def change(parts: Any) -> Any:
        logits = parts["logits"].copy()
        logits[7] = value
        return parts | {"logits": logits}

    return change


def changed_about(**fields: Any) -> Any:
    def change(parts: Any) -> Any:
        about = json.loads(parts["about"].tobytes()) | fields
        return parts | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}

    return change


CHANGES = {
    "a layer without cells": changed_first([0, 0, 511, 0, 0, 0]),
    "the cell after the last": None,
    "no layer with all cells": changed_first([1] * N_LAYER),
    "beyond the context": changed_first([0, 0, 0, 0, 0, 2**31 - 1]),
    "below 0": changed_first([0, 0, 0, 0, 0, -1]),
    "NaN": changed_logits(np.nan),
    "infinity": changed_logits(np.inf),
    "a seed beyond 32 bits": changed_about(seed=2**33),
    "a seed of 5,000 digits": changed_about(seed=0),
}


@pytest.fixture(scope="module", name="answer")
def make_answer() -> Callable[..., list[int]]:
    """`answer(make, options)`: to ASKED, of an object that knows no prompt."""
    known: dict[str, list[int]] = {}

    def answer(make: Make, options: dict[str, Any]) -> list[int]:
        if (key := str(options)) not in known:
            known[key] = greedy(make(**options), ASKED)
        return known[key]

    return answer


@pytest.mark.parametrize("options", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_no_prefill_leaves(make, answer, tmp_path, options, change):
    llm, path = make(**options), tmp_path / "p"
    llm.prefill(DOCUMENT)
    llm.save_prompt(path)
    parts = parts_of(path.read_bytes())
    after_last = changed_first([0, 0, llm.last_prefill.kept_tokens, 0, 0, 0])
    changed = (CHANGES[change] or after_last)(parts)
    if change == "a seed of 5,000 digits":
        about = parts["about"].tobytes().replace(b'"seed": ', b'"seed": ' + b"9" * 5000)
        changed = parts | {"about": np.frombuffer(about, np.uint8)}
    path.write_bytes(rewritten(changed))
    for target in (make(**options), llm):
        with pytest.raises(StateError):
            target.load_prompt(path)
        target.reset()
        assert greedy(target, ASKED) == answer(make, options)
    path.write_bytes(rewritten(parts))
    assert llm.load_prompt(path) == DOCUMENT


def test_the_same_of_states(make):
    llm = make(**UNEVEN)
    llm.prefill(DOCUMENT)
    state = llm.save_state()
    held = state.held
    assert any(held.first_cells) and held.logits is not None
    for wrong in (
        dataclasses.replace(held, first_cells=(0, 0, 511, 0, 0, 0)),
        dataclasses.replace(held, first_cells=(1,) * N_LAYER),
        dataclasses.replace(held, logits=np.full_like(held.logits, np.nan)),
        dataclasses.replace(held, n_pruned=0),
    ):
        state.held = wrong
        with pytest.raises(StateError):
            llm.load_state(state)
    state.held = held
    llm.load_state(state)
    forbidden = held.logits.copy()
    forbidden[7] = -np.inf  # as models do that forbid a token
    state.held = dataclasses.replace(held, logits=forbidden)
    llm.load_state(state)
    assert greedy(llm, [*DOCUMENT, 70], 2)
