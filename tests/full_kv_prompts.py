"""Prompts of the tests of `asl_full_kv`, and what K/V of them take."""

from __future__ import annotations

from typing import Any

from asl_gguf.cache.host_kv import HostKV
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.reusing import ReusingLayers
from asl_gguf.policies import ASL, Policy
from asl_gguf.report import PrefillReport
from harness import Context, prompt
from tiny_llama import N_LAYER

N_CTX = 512
N_TOKENS, N_KEPT = 170, 70
TOKENS = prompt(N_TOKENS)
N_BORDER = 80
"""of TOKENS: where a batch ends"""
EARLIER = TOKENS[:N_BORDER] + prompt(60, seed=1)


def keep(context: Context, kept: HostKV, policy: Policy, tokens: list[int] = TOKENS, **options: Any) -> PrefillReport:
    session = ReusingLayers(context.session(N_CTX), kept)
    return session.corrected(prefill(session, tokens, policy, N_KEPT, **options))


CHUNK = 16
"""lengths of all prompts and answers here are multiples of it: then the past ends where a chunk does"""
DOCUMENT = prompt(160)
QUESTIONS = [prompt(32, seed=seed) for seed in range(4)]
OTHER = prompt(208, seed=9)
SHARED = {"asl_budget": 0.4, "asl_min_prompt": 80, "n_batch": CHUNK, "n_ubatch": CHUNK}
N_ANSWER = CHUNK
N_EMBD = 128
SELECTS = ASL(min_layer=2, obs_layers=2, tau=2)
"""its window is two chunks, whatever the budget"""


def n_whole_layers(report: PrefillReport) -> int:
    """Layers that saw all tokens."""
    return N_LAYER if report.selection_layer is None else report.selection_layer + 1


def kept_bytes(report: PrefillReport, packed: int = 1, cached: int = 1) -> int:
    """K/V of these layers (`packed` bytes for `cached` of them in the cache), and what the last of them put out if there
    are more."""
    n_whole = n_whole_layers(report)
    hidden = report.prompt_tokens * N_EMBD * 4 if n_whole < N_LAYER else 0
    return report.kv_bytes_prompt_full // N_LAYER * n_whole // cached * packed + hidden
