"""`asl-gguf calibrate`: measures a model and stores the min_layer and tau that suit it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..drop_in.progress import ProgressBar
from ..errors import OptionError
from ..eval.calibrate.page import CHOICE_HEAD, choice_rows, page, profile_rows
from ..eval.calibrate.picture import picture
from ..eval.calibrate.tradeoff import EASY, HARD, choose, mean_profile, means
from ..models import calibration
from ..models.calibration import Calibration
from ..policies import ASL, make_policy
from ..policies.parameters import require_share
from .budgets import parse_fixed_budget
from .options import add_model_options, add_pruning_options, check_out, context_kwargs

if TYPE_CHECKING:
    from ..native.model import Model

_PAGES = (".html", ".htm")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="find and store a model's selection layers",
        description="Measures a model on made-up prompts and stores min_layer and tau of a policy for it. "
        "Llama, and the commands run, chat, demo, inspect and compare, take them from then on.",
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
        "--out", type=Path, default=None, metavar="FILE", help="a page (.html) or a picture (.svg) of the profile"
    )
    parser.add_argument("--dry-run", action="store_true", help="store nothing")
    parser.set_defaults(run=calibrate)


def calibrate(args: argparse.Namespace) -> int:
    from ..models.named import resolve
    from ..native.model import ContextOptions, Model

    policy = _policy(args.policy)
    require_share(args.tradeoff, "--tradeoff", one=True)
    if args.out is not None:
        check_out(args.out)
        if args.out.suffix.lower() not in (".svg", *_PAGES):
            raise OptionError(f"--out: expected a file that ends in .html or .svg, got {args.out}")
    options = ContextOptions(**context_kwargs(args))
    model = Model(str(resolve(args.model)), options)
    try:
        found = _measure(model, policy, args)
        path = None if args.dry_run else calibration.save(model.path, found)
    finally:
        model.close()
    _print_profile(found)
    _print_choice(found, policy)
    if path is not None:
        print(f"\nstored in {path}")
    if args.out is not None:
        as_page = args.out.suffix.lower() in _PAGES
        text = page(found, policy, Path(model.path).stem) if as_page else picture(found)
        args.out.write_text(text, encoding="utf-8")
        print(f"drawn in {args.out}")
    return 0


def _policy(name: str) -> ASL:
    policy = make_policy(name)
    if not isinstance(policy, ASL):
        raise OptionError(f"--policy: expected asl-span, asl or asl-two-pass, which choose their layer, got {name!r}")
    return policy


def _measure(model: Model, policy: ASL, args: argparse.Namespace) -> Calibration:
    from ..eval.calibrate.profiling import make_cases, profile

    easy, hard = tuple(args.easy.split(",")), tuple(args.hard.split(","))
    budget = parse_fixed_budget(args.budget, "layers are compared at a known number of kept tokens")
    cases = make_cases(model, args.tokens, args.samples, easy, hard)
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
