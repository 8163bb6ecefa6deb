"""`asl-gguf calibrate`: measures a model and stores the min_layer and tau that suit it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..budget.late import CALIBRATED
from ..drop_in.progress import ProgressBar
from ..errors import OptionError
from ..eval.calibrate.cutting import Found
from ..eval.calibrate.page import CHOICE_HEAD, auto_sentence, choice_rows, page, profile_rows
from ..eval.calibrate.picture import picture
from ..eval.calibrate.tradeoff import EASY, HARD, choose, mean_profile, means
from ..models import calibration
from ..models.calibration import Calibration
from ..models.cuts import StoredCut
from ..policies import ASL, make_policy
from ..policies.parameters import require_share
from .budgets import parse_fixed_budget
from .options import add_model_options, add_pruning_options, check_out, context_kwargs

if TYPE_CHECKING:
    from ..eval.calibrate.profiling import TooFewLayersError
    from ..eval.tasks import ChatFormat
    from ..native.model import Model

_PAGES = (".html", ".htm")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="find and store a model's selection layers",
        description="Measures a model on made-up prompts and stores min_layer and tau of a policy for it, and what the "
        "budget auto goes by, where that pays. Llama, and the commands run, chat, demo, inspect, compare and serve, take them "
        "from then on.",
    )
    add_model_options(parser)
    add_pruning_options(parser, budget="0.1", targets=False)
    parser.add_argument("--tokens", type=int, default=1024, help="longest prompt (default %(default)s)")
    parser.add_argument("--samples", type=int, default=3, help="prompts of each task (default %(default)s)")
    parser.add_argument(
        "--tradeoff", type=float, default=0.3, help="0: most accurate, 1: fastest (default %(default)s)"
    )
    parser.add_argument("--step", type=int, default=1, help="measure every N-th layer (default %(default)s)")
    parser.add_argument(
        "--easy", default=",".join(EASY), help="tasks that count as easy, with commas (default %(default)s)"
    )
    parser.add_argument(
        "--hard", default=",".join(HARD), help="tasks that count as hard, with commas (default %(default)s)"
    )
    parser.add_argument(
        "--auto-samples",
        type=int,
        default=3,
        metavar="N",
        help="prompts of each of 18 kinds, from which the budget auto learns what it goes by; 0: it learns nothing (default "
        "%(default)s)",
    )
    parser.add_argument(
        "--chat",
        default="auto",
        help="form of the prompts: auto (the model's own), chatml, plain (default %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="a page (.html) or a picture (.svg) of the profile"
    )
    parser.add_argument("--dry-run", action="store_true", help="store nothing")
    parser.set_defaults(run=calibrate)


def calibrate(args: argparse.Namespace) -> int:
    from ..eval.chat_format import chat_format
    from ..models.named import resolve
    from ..native.model import ContextOptions, Model

    policy = _policy(args.policy)
    require_share(args.tradeoff, "--tradeoff", one=True)
    if args.out is not None:
        check_out(args.out)
        if args.out.suffix.lower() not in (".svg", *_PAGES):
            raise OptionError(f"--out: expected a file that ends in .html or .svg, got {args.out}")
    if args.auto_samples < 0:
        raise OptionError(f"--auto-samples: expected a number from 0 on, got {args.auto_samples}")
    options = ContextOptions(**context_kwargs(args))
    model = Model(str(resolve(args.model)), options)
    try:
        chat = chat_format(model, args.chat)
        found, missing = _layers(model, policy, args, chat)
        chosen = replace(policy, min_layer=found.min_layer, tau=found.tau) if found else policy
        auto = _look(model, chosen, args, chat)
        path = None if args.dry_run else _store(model.path, found, auto, chosen, bool(args.auto_samples))
    finally:
        model.close()
    if found is not None:
        _print_profile(found)
        _print_choice(found, policy)
    print(f"\n{auto_sentence(auto)}")
    if missing is not None:
        if auto.auto is None:
            raise missing
        print(f"\nlayers: nothing stored{f', nothing drawn in {args.out}' if args.out else ''}: {missing}")
    if path is not None:
        print(f"\nstored in {path}")
    if args.out is not None and found is not None:
        as_page = args.out.suffix.lower() in _PAGES
        text = page(found, policy, Path(model.path).stem, auto_sentence(auto)) if as_page else picture(found)
        args.out.write_text(text, encoding="utf-8")
        print(f"drawn in {args.out}")
    return 0


def _layers(
    model: Model, policy: ASL, args: argparse.Namespace, chat: ChatFormat
) -> tuple[Calibration | None, TooFewLayersError | None]:
    """The layers that suit the model, or why there are none to choose from."""
    from ..eval.calibrate.profiling import TooFewLayersError

    try:
        return _measure(model, policy, args, chat), None
    except TooFewLayersError as error:
        return None, error


def _store(path: str, found: Calibration | None, auto: Found, policy: ASL, looked: bool) -> Path | None:
    """Returns the file; None: nothing was found.

    Args:
        policy: that `auto` was measured under.
        looked: what `auto` goes by was looked for: an older one goes.
    """
    file = calibration.save(path, found) if found else None
    if auto.auto is not None:
        return calibration.save_cut(path, policy.name, StoredCut.of(auto.auto, policy, __version__))
    if looked:
        calibration.forget_cut(path, policy.name)
    return file


def _policy(name: str) -> ASL:
    policy = make_policy(name)
    if not isinstance(policy, ASL):
        raise OptionError(f"--policy: expected asl-span, asl or asl-two-pass, which choose their layer, got {name!r}")
    return policy


def _measure(model: Model, policy: ASL, args: argparse.Namespace, chat: ChatFormat) -> Calibration:
    from ..eval.calibrate.profiling import make_cases, profile

    easy, hard = tuple(args.easy.split(",")), tuple(args.hard.split(","))
    budget = parse_fixed_budget(args.budget, "layers are compared at a known number of kept tokens")
    cases = make_cases(model, args.tokens, args.samples, easy, hard, chat)
    print(f"{len(cases)} prompts of up to {args.tokens} tokens, budget {budget}, policy {policy.name}", flush=True)
    bar = ProgressBar("calibrate")
    try:
        profiles = profile(model, policy, cases, budget=budget, step=args.step, dequant=args.dequant, progress=bar)
    finally:
        bar.clear()
    choice = choose(profiles, args.tradeoff, policy.variance_reference)
    return Calibration(
        policy=policy.name,
        min_layer=choice.min_layer,
        tau=choice.tau,
        settings=calibration.settings_of(policy),
        before=means(profiles, [profile.before for profile in profiles]),
        after=choice.means,
        profile=mean_profile(profiles),
        tradeoff=args.tradeoff,
        budget=budget,
        tokens=args.tokens,
        samples=args.samples,
        easy=easy,
        hard=hard,
        version=__version__,
    )


def _look(model: Model, policy: ASL, args: argparse.Namespace, chat: ChatFormat) -> Found:
    """What `auto` goes by under this policy."""
    from ..eval.calibrate.looking import Looker
    from ..native.context import model_shape

    if not policy.decides_late:
        return Found(None, f"{policy.name} does not take it")
    if model_shape(model.handle) in CALIBRATED:
        return Found(None, "this model's thresholds are known")
    if not args.auto_samples:
        return Found(None, "not looked for (--auto-samples 0)")
    bar = ProgressBar("auto")
    try:
        return Looker(model, policy, args.tokens, args.dequant, chat).find(args.auto_samples, bar)
    finally:
        bar.clear()


def _print_profile(found: Calibration) -> None:
    last = str(found.profile.n_layer - 1)
    print("\n       rank variance         more NLL, nats/token   probability  prefill")
    print("layer  easy       hard       easy       hard       lost         share")
    for layer, *cells in profile_rows(found):
        line = f"{layer:>5}" + "".join(f"  {cell:<{width}}" for cell, width in zip(cells, (9, 9, 9, 9, 11, 4)))
        print(line.rstrip() + ("  (nothing is selected)" if layer == last else ""))


def _print_choice(found: Calibration, policy: ASL) -> None:
    print()
    for name, *cells in [CHOICE_HEAD, *choice_rows(found, policy)]:
        print(f"{name:42}" + "".join(f"{cell:>12}" for cell in cells))
