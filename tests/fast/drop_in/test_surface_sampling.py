"""Sampling: the keywords of generate and sample, what callbacks see, seeds."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from asl_gguf.drop_in import surface
from harness import llama_cpp
from surface_cases import LAYERED, PRUNED, SAMPLING, TOKENS, UNPRUNED, completed

pytestmark = pytest.mark.usefixtures("short_prompts_count")

GENERATE = {
    **SAMPLING,
    "temp": {"temp": 0.0},
    "penalize_nl": {"penalize_nl": False},
    "stopping_criteria": {
        "stopping_criteria": llama_cpp.StoppingCriteriaList([lambda ids, scores: len(ids) > len(TOKENS) + 2])
    },
}
SAMPLE = {name: GENERATE[name] for name in (*SAMPLING, "temp", "penalize_nl")}


def test_every_keyword_is_tried():
    in_test_surface = {"tokens", "reset", "idx"}
    assert set(surface.KEYWORDS["generate"]) - in_test_surface == set(GENERATE)
    assert set(surface.KEYWORDS["sample"]) - in_test_surface == set(SAMPLE)


def generated(llm: Any, **arguments: Any) -> list[int]:
    llm.set_seed(5)
    return list(islice(llm.generate(TOKENS, **arguments), 6))


@pytest.mark.parametrize("name", GENERATE)
def test_a_keyword_of_generate(shared, name):
    expected = generated(shared(llama_cpp.Llama), **GENERATE[name])
    llm = shared(**LAYERED)
    assert generated(llm, **GENERATE[name]) == expected and not llm.last_prefill.pruned
    llm = shared(**PRUNED)
    found = generated(llm, **GENERATE[name])
    assert llm.last_prefill.pruned and generated(llm, **GENERATE[name]) == found
    assert len(found) == len(expected) or name == "grammar"


@pytest.mark.parametrize("options", [UNPRUNED, PRUNED], ids=["unpruned", "pruned"])
def test_the_keywords_of_sample(make, stock, options):
    """After eval alone: once generate ran, its sampler counts, in the parent too."""
    found = []
    for llm in (make(**options), stock()):
        llm.eval(TOKENS)
        llm.set_seed(5)
        found.append([llm.sample(**SAMPLE[name]) for name in SAMPLE])
    assert found[0] == found[1] and len(set(found[0])) > 2


def test_sample_after_a_pruned_prompt_goes_on_with_the_sampler_of_generate(make):
    llm, other = make(**PRUNED), make(**PRUNED)
    expected = generated(other, temp=1.5)
    llm.set_seed(5)
    found = [next(llm.generate(TOKENS, temp=1.5))]
    while len(found) < len(expected):
        llm.eval(found[-1:])
        found.append(llm.sample(temp=0.0))
    assert found == expected


def test_callbacks_see_the_whole_prompt(make):
    """As many token ids as the prompt has, not as many as cells are kept."""
    seen: dict[str, list[list[int]]] = {"processor": [], "criteria": []}

    def process(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen["processor"].append(ids.tolist())
        return scores

    def stops(ids: np.ndarray, scores: np.ndarray) -> bool:
        seen["criteria"].append(ids.tolist())
        return len(ids) >= len(TOKENS) + 3

    llm = make(**PRUNED)
    found = completed(
        llm,
        prompt=TOKENS,
        logits_processor=llama_cpp.LogitsProcessorList([process]),
        stopping_criteria=llama_cpp.StoppingCriteriaList([stops]),
    )
    assert llm.last_prefill.pruned and found["usage"]["completion_tokens"] == 3
    lengths = [len(TOKENS) + n for n in range(4)]
    assert [len(ids) for ids in seen["processor"]] == lengths
    assert [len(ids) for ids in seen["criteria"]] == [*lengths, lengths[-1]]  # once more for the finish reason
    assert all(ids[: len(TOKENS)] == TOKENS for calls in seen.values() for ids in calls)


def test_seeds(make, stock):
    """Without one the object's own seed draws; set_seed and Llama(seed=) start it alike."""
    found = []
    for new in (stock, lambda **arguments: make(**LAYERED, **arguments)):
        llm, other = new(seed=11), new()
        other.set_seed(11)
        texts = [[completed(each, seed=None)["choices"][0]["text"] for _ in range(2)] for each in (llm, other)]
        assert texts[0] == texts[1] and len(set(texts[0])) == 2
        found.append(texts)
    assert found[0] == found[1]
    llm = make(**PRUNED)
    texts = [completed(llm, seed=seed)["choices"][0]["text"] for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
