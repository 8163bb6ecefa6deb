"""`asl-gguf compare`: one question under several policies, side by side."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..budget.share import Budget
from ..budget.targets import BudgetValue, check_budget, make_budget
from ..drop_in.progress import ProgressBar
from ..policies import REGISTRY, Full, parse_policy
from .budgets import ESCAPED_BUDGET_HELP, add_budget_option, parse_budget, parse_fixed_budget
from .inspect import add_prompt_options, make_question
from .options import add_dequant_option, add_llama_options, add_model_options
from .streams import print_json

if TYPE_CHECKING:
    from ..inspect.comparison import Answer

_POLICIES = ",".join(["none", *(name for name in REGISTRY if name not in ("none", "indexer"))])
_ANSWER_WIDTH = 60
_COLUMNS = ("policy", "selection layer", "kept tokens", "prefill", "KV MiB", "attention mass", "answer")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="one question under several policies",
        description="Answers one question under several policies. One full pass for each window of queries serves all policies; "
        "with --measure each policy has a prefill of its own, which is timed.",
    )
    add_model_options(parser)
    add_llama_options(parser)
    add_prompt_options(parser)
    parser.add_argument(
        "--policies", default=_POLICIES, help="name or name:parameter=value:..., with commas (default %(default)s)"
    )
    add_budget_option(parser, "0.2", f"{ESCAPED_BUDGET_HELP}; goals with --measure (default %(default)s)")
    add_dequant_option(parser)
    parser.add_argument("--measure", action="store_true", help="a real prefill for each policy, with its seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=compare)


def compare(args: argparse.Namespace) -> int:
    from ..inspect.comparison import measured, replayed

    budget = parse_budget(args.budget) if args.measure else None
    if not isinstance(budget, str):
        budget = parse_fixed_budget(args.budget, "a goal needs --measure, and the full cache --policies none")
    policies = _policies(args.policies, budget)
    bar = ProgressBar("prefill")
    question = make_question(args, bar)
    try:
        answers = list((measured if args.measure else replayed)(question, budget, policies))
    finally:
        bar.clear()
    if args.json:
        result = {"measured": args.measure, "budget": budget, "answers": [answer.to_dict() for answer in answers]}
        print_json(result)
    else:
        print("\n".join(_lines(answers)))
    return 0


def _policies(text: str, budget: BudgetValue) -> list[str]:
    """The policies as they were written.

    Raises:
        OptionError: one is unknown, or the budget is too small for one.
    """
    names = list(dict.fromkeys(text.split(",")))
    for policy in map(parse_policy, names):
        check_budget(make_budget(budget, Budget.min_prompt), policy)
    return names


def _lines(answers: Sequence[Answer]) -> list[str]:
    """A table, one row per policy, and what there is to note."""
    rows = [_COLUMNS, *map(_row, answers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    lines = []
    for row in rows:
        head = " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths))
        blank = " | ".join(" " * width for width in widths)
        for i, part in enumerate(textwrap.wrap(row[-1], _ANSWER_WIDTH) or [""]):
            lines.append(f"{blank if i else head} | {part}".rstrip())
    lines.insert(1, "-+-".join("-" * width for width in [*widths, _ANSWER_WIDTH]))
    notes = [
        f"{answer.policy}: {answer.report.reason}"
        for answer in answers
        if answer.report.reason and answer.report.policy != Full.name
    ]
    notes += [f"{answer.policy}: {answer.report.calibration}" for answer in answers if answer.report.calibration]
    if answers[0].prefill_seconds is None:
        notes.append("prefill: token-layers of a full prefill; --measure for seconds")
    return [*lines, "", *notes] if notes else lines


def _row(answer: Answer) -> tuple[str, ...]:
    report, seconds = answer.report, answer.prefill_seconds
    return (
        answer.policy,
        "-" if report.selection_layer is None else f"{report.selection_layer} of {report.n_layer}",
        report.kept_of,
        f"{answer.prefill_share:.0%}" + ("" if seconds is None else f", {seconds:.2f} s"),
        f"{report.kv_bytes_prompt / 2**20:.1f}" if report.kv_bytes_prompt else "-",
        "-" if report.attention_mass is None else f"{report.attention_mass:.3f}",
        " ".join(answer.text.split()),
    )
