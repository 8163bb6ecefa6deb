"""Arguments to try every keyword of create_completion with."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import llama_cpp, prompt
from tiny_gguf import FIRST_BYTE
from tiny_llama import READABLE, TEXT

MIN_PROMPT = 80
UNPRUNED = {"asl_budget": 1.0, "asl_dequant": False}
LAYERED = {"asl_budget": 1.0}
"""nothing pruned, but run layer by layer: the weights are F32, which asl_dequant leaves as they are"""
PRUNED = {"asl_budget": 0.4, "asl_min_prompt": MIN_PROMPT}
PROMPT = TEXT[:200]
"""long enough to be pruned and to run layer by layer, where MIN_PROMPT is the limit (the fixture short_prompts_count)"""
BASE = {"prompt": PROMPT, "max_tokens": 8, "seed": 3, "logit_bias": READABLE}
TOKENS = prompt(120)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def add_readable_bias(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What logit_bias does with READABLE, and no repetition: it depends on the ids."""
    result = scores.copy()
    result[list(READABLE)] = -100.0
    result[ids[-20:]] = -100.0
    return result


SAMPLING: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 1},
    "top_p": {"top_p": 0.05},
    "min_p": {"min_p": 0.9},
    "typical_p": {"typical_p": 0.05},
    "repeat_penalty": {"repeat_penalty": 0.01},
    "frequency_penalty": {"frequency_penalty": -8.0},
    "presence_penalty": {"presence_penalty": -8.0},
    "tfs_z": {"tfs_z": 0.1},
    "mirostat_mode": {"mirostat_mode": 1},
    "mirostat_tau": {"mirostat_mode": 2, "mirostat_tau": 0.5},
    "mirostat_eta": {"mirostat_mode": 2, "mirostat_eta": 0.9},
    "logits_processor": {"logits_processor": llama_cpp.LogitsProcessorList([add_readable_bias])},
    "grammar": {"grammar": llama_cpp.LlamaGrammar.from_string('root ::= [a-f] [0-9]+ "!"', verbose=False)},
}
"""keyword -> arguments to try it with"""
WORKS: dict[str, dict[str, Any]] = {
    **SAMPLING,
    "prompt": {"prompt": TOKENS},
    "suffix": {"suffix": " The end."},
    "max_tokens": {"max_tokens": 3},
    "temperature": {"temperature": 0.0},
    "echo": {"echo": True},
    "stop": {"stop": list(LETTERS)},
    "stream": {},  # all of these stream, too
    "seed": {"seed": 4},
    "model": {"model": "a name"},
    "stopping_criteria": {"stopping_criteria": llama_cpp.StoppingCriteriaList([lambda ids, scores: ids[-1] > 60])},
    "logit_bias": {"logit_bias": {FIRST_BYTE + ord("!"): 100.0}},
}


def completed(llm: Any, **arguments: Any) -> Any:
    if {"logits_processor", "grammar"} & arguments.keys():
        arguments = {"logit_bias": None, **arguments}
    return llm.create_completion(**{**BASE, **arguments})
