"""Profiles of sample prompts for the calibration: rank variance by layer, and the answer for each selection layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...budget.share import Budget, round_cells
from ...engine.prefill import prefill
from ...engine.replay import Replay, record
from ...errors import OptionError
from ...native.model import Model
from ...native.session import sliding_layers
from ...policies import ASL, Full, Policy
from ...policies.ranking import random_rank_variance
from ..measure import measure
from ..tasks import DEVELOPMENT_SEED, Example, Task, make_task
from .tradeoff import EASY, HARD, Outcome, Profile

Progress = Callable[[int, int], None]
"""(examples done, examples in all)"""

_ANSWER_CELLS = 256
_AT_ONCE = 2.0
"""a tau above 1: the ratio at min_layer is 1, so the rule selects there"""
_NEVER = 0.0


@dataclass(frozen=True)
class Case:
    """One example, and whether its task counts as hard."""

    task: Task
    example: Example
    hard: bool


def make_cases(
    model: Model, n_tokens: int, samples: int, easy: Sequence[str] = EASY, hard: Sequence[str] = HARD
) -> list[Case]:
    """Examples of these tasks, of at most n_tokens tokens each, from the development seed.

    Raises:
        OptionError: a task is unknown or both easy and hard, or n_tokens or samples is too small.
    """
    if both := sorted({*easy} & {*hard}):
        raise OptionError(f"expected each task as easy or as hard, got {both[0]} as both; name it once")
    cases = []
    for name in (*easy, *hard):
        task = make_task(name, lambda text: len(model.tokenize(text)), n_tokens, samples, DEVELOPMENT_SEED)
        cases += [Case(task, task.get_example(index), name in hard) for index in range(samples)]
    return cases


def profile(
    model: Model,
    policy: Policy,
    cases: Sequence[Case],
    *,
    budget: float | int = 0.1,
    step: int = 1,
    dequant: str = "auto",
    progress: Progress | None = None,
) -> list[Profile]:
    """One profile per case; each prompt runs through all layers once, and from every step-th layer on in part.

    Raises:
        OptionError: the policy has no stopping rule, the model is too shallow for it or has sliding layers, or budget or
            step is outside its domain.
        UnsupportedModelError: the model cannot be prefilled layer by layer.
    """
    if not isinstance(policy, ASL):
        raise OptionError(
            f"policy: expected asl or one derived from it, which have min_layer and tau, got {policy.name}"
        )
    if step < 1:
        raise OptionError(f"step: expected at least 1, got {step}")
    if model.n_layer < policy.obs_layers + 2:
        raise OptionError(
            f"expected a model of at least {policy.obs_layers + 2} layers to calibrate {policy.name}, which compares "
            f"{policy.obs_layers}, got one of {model.n_layer}; use fastkv, whose layer is fixed"
        )
    if any(sliding := sliding_layers(model.handle)):
        full = [layer for layer, slides in enumerate(sliding) if not slides]
        raise OptionError(
            f"expected a model whose layers all attend to the whole prompt, got one where layers {full} alone do and the others "
            f"slide: pick one of these instead, such as {policy.name}:min_layer={full[len(full) // 2] if full else 0}"
        )
    profiles = []
    for done, case in enumerate(cases):
        if progress:
            progress(done, len(cases))
        profiles.append(_profile(model, policy, case, Budget(budget, 0), step, dequant))
    if progress:
        progress(len(cases), len(cases))
    return profiles


def _profile(model: Model, policy: ASL, case: Case, budget: Budget, step: int, dequant: str) -> Profile:
    tokens = model.tokenize(case.example.prompt)
    n_kept = budget.kept(len(tokens), policy.min_kept)
    if n_kept >= len(tokens):
        raise OptionError(f"budget: expected less than the prompt of {len(tokens)} tokens, got {budget.value}")
    lowest, last = policy.obs_layers - 1, model.n_layer - 1
    n_cells = round_cells(len(tokens) + _ANSWER_CELLS)
    example = replace(case.example, max_new_tokens=0)  # the likelihood of the right answer is enough
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, dequant) as session:
        window = policy.window_of(len(tokens), n_kept)
        replay = Replay(session, record(session, tokens, window, policy.weights_of(window)))

        def run(policy: Policy) -> tuple[Outcome, tuple[float, ...]]:
            report = prefill(replay, tokens, policy, n_kept if isinstance(policy, ASL) else len(tokens))
            layer = last if report.selection_layer is None else report.selection_layer
            nll = measure(model, ctx, len(tokens), case.task, example).nll
            return Outcome(layer, nll, report.prefill_share), tuple(variance for _, variance, _ in report.variance)

        full, _ = run(Full())
        never, variance = run(replace(policy, min_layer=lowest, tau=_NEVER))
        # the rule selects after min_layer, and at the last layer there is nothing to gain
        layers = range(lowest + 1, last, step)
        measured = [run(replace(policy, min_layer=layer, tau=_AT_ONCE))[0] for layer in layers]
        before, _ = run(policy)
    random_variance = random_rank_variance(len(tokens) - policy.n_sink - window)
    return Profile(case.hard, lowest, variance, (*measured, never), full.nll, before, random_variance)
