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
from ..tasks import CHATML, DEVELOPMENT_SEED, ChatFormat, Example, Task, make_task
from .tradeoff import EASY, HARD, Outcome, Profile

Progress = Callable[[int, int], None]
"""(examples done, examples in all)"""

_ANSWER_CELLS = 256
_AT_ONCE = 1e9
"""a tau above every ratio, so that the rule selects at min_layer"""
_NEVER = 0.0


class TooFewLayersError(OptionError):
    """There are no layers to choose from."""


@dataclass(frozen=True)
class Case:
    """One example, and whether its task counts as hard."""

    task: Task
    example: Example
    hard: bool


def make_cases(
    model: Model,
    n_tokens: int,
    samples: int,
    easy: Sequence[str] = EASY,
    hard: Sequence[str] = HARD,
    chat: ChatFormat = CHATML,
) -> list[Case]:
    """Examples of these tasks, of at most n_tokens tokens each, from the development seed.

    Raises:
        OptionError: a task is unknown or both easy and hard, or n_tokens or samples is too small.
    """
    if both := sorted({*easy} & {*hard}):
        raise OptionError(f"expected each task as easy or as hard, got {both[0]} as both; name it once")
    cases = []
    for name in (*easy, *hard):
        task = make_task(name, lambda text: len(model.tokenize(text)), n_tokens, samples, DEVELOPMENT_SEED, chat)
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
    asked = _asked(model, policy)
    profiles = []
    for done, case in enumerate(cases):
        if progress:
            progress(done, len(cases))
        profiles.append(_profile(model, policy, case, Budget(budget, 0), step, dequant, asked))
    if progress:
        progress(len(cases), len(cases))
    return profiles


def _asked(model: Model, policy: ASL) -> tuple[int, ...]:
    """Layers that are asked what to keep, where others slide or hold a state; empty if all are.

    Raises:
        TooFewLayersError: there are too few to choose one.
    """
    itself = sliding_layers(model.handle)
    full = tuple(layer for layer, own in enumerate(itself) if not own)
    n_least = 3 if any(itself) else policy.obs_layers + 2
    if len([layer for layer in full if not any(itself) or layer >= policy.obs_layers - 1]) < n_least:
        raise TooFewLayersError(
            f"expected a model of at least {policy.obs_layers + 2} layers to calibrate {policy.name}, which compares "
            f"{policy.obs_layers}, and of these 3 that attend to the whole prompt from layer {policy.obs_layers - 1} on, got one of "
            f"{model.n_layer} where {full} do; use fastkv, whose layer is fixed"
        )
    return full if any(itself) else ()


def _profile(
    model: Model, policy: ASL, case: Case, budget: Budget, step: int, dequant: str, asked: tuple[int, ...]
) -> Profile:
    """Layers are places in `asked`, if there are any."""
    tokens = model.tokenize(case.example.prompt)
    n_kept = budget.kept(len(tokens), policy.min_kept)
    if n_kept >= len(tokens):
        raise OptionError(f"budget: expected less than the prompt of {len(tokens)} tokens, got {budget.value}")
    least = policy.obs_layers - 1  # min_layer of the policy
    # of a few layers, the second is the first whose ranks have others to compare with, and the first reference
    lowest, last = (1, len(asked) - 1) if asked else (least, model.n_layer - 1)
    first_min = next((i for i, layer in enumerate(asked) if layer >= least and i > lowest), None)
    n_cells = round_cells(len(tokens) + _ANSWER_CELLS)
    example = replace(case.example, max_new_tokens=0)  # the likelihood of the right answer is enough
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, dequant) as session:
        window = policy.window_of(len(tokens), n_kept)
        replay = Replay(session, record(session, tokens, window, policy.weights_of(window)))

        def run(policy: Policy) -> tuple[Outcome, tuple[float, ...]]:
            report = prefill(replay, tokens, policy, n_kept if isinstance(policy, ASL) else len(tokens))
            layer = model.n_layer - 1 if report.selection_layer is None else report.selection_layer
            place = asked.index(layer) if layer in asked else last if asked else layer
            nll = measure(model, ctx, len(tokens), case.task, example).nll
            variances = {layer: variance for layer, variance, _ in report.variance}
            return Outcome(place, nll, report.prefill_share), tuple(
                variances[layer] for layer in (asked[lowest:] or range(lowest, last + 1)) if layer in variances
            )

        full, _ = run(Full())
        never, variance = run(replace(policy, min_layer=least, tau=_NEVER))
        # the rule selects after min_layer, and at the last layer there is nothing to gain
        layers = range(lowest + 1 if first_min is None else first_min, last, step)
        measured = [
            run(replace(policy, min_layer=asked[layer] if asked else layer, tau=_AT_ONCE))[0] for layer in layers
        ]
        before, _ = run(policy)
    random_variance = random_rank_variance(len(tokens) - policy.n_sink - window)
    return Profile(case.hard, lowest, variance, (*measured, never), full.nll, before, random_variance, asked, first_min)
