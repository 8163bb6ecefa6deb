"""Fixtures of the tests of `Llama`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.engine import sequence
from surface_cases import MIN_PROMPT
from tiny_llama import N_CTX, SETTLES, Make


@pytest.fixture(params=["asl", "snapkv"], name="options")
def make_options(request) -> dict[str, Any]:
    return {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": SETTLES if request.param == "asl" else request.param}


@pytest.fixture(name="shared", scope="module")
def make_shared(tiny_model) -> Iterator[Make]:
    """`shared(cls=Llama, **options)`: the module's object with these options, which knows no prompt."""
    made: dict[str, Any] = {}

    def shared(cls: type = Llama, **options: Any) -> Any:
        if (key := str((cls, options))) not in made:
            options = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **options}
            made[key] = cls(str(tiny_model("llama")), **options)
        made[key].reset()
        made[key].last_prefill = None
        return made[key]

    yield shared
    for llm in made.values():
        llm.close()


@pytest.fixture
def short_prompts_count(monkeypatch) -> None:
    """Prompts of MIN_PROMPT tokens run layer by layer where nothing is pruned, as longer ones do: they take less time."""
    monkeypatch.setattr(sequence, "_MIN_LAYERED", MIN_PROMPT)
