"""`asl-gguf eval` and `asl-gguf report`: what pruning costs in answers."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..budget.targets import Auto, is_target
from ..drop_in.progress import ProgressBar
from ..errors import OptionError
from .options import DEQUANT, add_model_options

TITLE = "Answers under pruning"
_SUITES = ("standard", "smoke", "small", "paper")


def add_parser(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="answers of policies and budgets beside the full cache",
        description="Runs a suite of tasks (docs/EVALUATION.md). What the folder holds already is not repeated.",
    )
    add_model_options(evaluate)
    evaluate.add_argument("--out", type=Path, default=Path("results"), help="folder for results (default %(default)s)")
    evaluate.add_argument(
        "--suite",
        default="standard",
        metavar="NAME",
        help=f"{', '.join(_SUITES)} (default %(default)s); the options below replace its own",
    )
    evaluate.add_argument("--tasks", help="names, or name:FILE, with commas")
    evaluate.add_argument("--lengths", help="prompt tokens, with commas")
    evaluate.add_argument("--budgets", help="shares, tokens, or auto, with commas")
    evaluate.add_argument("--policies", help="name or name:parameter=value:..., with commas")
    evaluate.add_argument("--samples", type=int, help="examples of each task; of niah: at each depth")
    evaluate.add_argument("--depths", help="of niah: percent of the haystack, with commas")
    evaluate.add_argument("--seed", help="development, report, or a number")
    evaluate.add_argument(
        "--haystack", help="text file in the place of the prose, such as essays; for niah also: noise"
    )
    evaluate.add_argument("--squad", metavar="FILE", help="SQuAD 2.0 as JSON, for qa_1")
    evaluate.add_argument("--hotpotqa", metavar="FILE", help="HotpotQA (distractor setting) as JSON, for qa_2")
    evaluate.add_argument("--infinitebench", metavar="FOLDER", help="InfiniteBench's .jsonl files")
    evaluate.add_argument(
        "--chat",
        default="auto",
        help="form of the prompts: auto (the model's own), chatml, plain (default %(default)s)",
    )
    evaluate.add_argument(
        "--calibrated", action="store_true", help="policies as asl-gguf calibrate stored them for this model"
    )
    evaluate.add_argument("--dequant", choices=DEQUANT, default="auto")
    evaluate.add_argument(
        "--record-gib",
        type=float,
        default=8.0,
        help="host memory for the full pass that serves all policies; prompts that need more are prefilled anew for "
        "each answer (default %(default)s)",
    )
    evaluate.set_defaults(run=run_eval)
    report = commands.add_parser(
        "report", help="tables and plots of `asl-gguf eval`", description="Prints Markdown tables."
    )
    report.add_argument("folders", type=Path, nargs="+", help="--out of asl-gguf eval")
    report.add_argument("--html", type=Path, metavar="FILE", help="write one page with figures too; needs matplotlib")
    report.add_argument("--figures", type=Path, metavar="FOLDER", help="write the figures as SVG too; needs matplotlib")
    report.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, with links to --figures")
    report.add_argument(
        "--by-task", action="store_true", help="print one line per task instead, with an interval of the whole"
    )
    report.add_argument("--title", default=TITLE, help="heading (default %(default)s)")
    report.set_defaults(run=run_report)


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{name}: expected numbers with commas, got {text!r}") from None


def _budget(text: str) -> float | int | str:
    if is_target(text):
        return Auto.parse(text, option="--budgets").value
    return float(text) if "." in text else int(text)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Plan` from the options that were given."""
    from ..eval.suites import SEEDS

    values: dict[str, Any] = {}
    for name in ("tasks", "policies"):
        if (text := getattr(args, name)) is not None:
            values[name] = tuple(text.split(","))
    kinds: dict[str, Callable[[str], Any]] = {"lengths": int, "budgets": _budget, "depths": int}
    for name, kind in kinds.items():
        if (text := getattr(args, name)) is not None:
            values[name] = _numbers(f"--{name}", text, kind)
    if args.samples is not None:
        if args.samples < 1:
            raise OptionError(f"--samples: expected at least 1, got {args.samples}")
        values["samples"] = args.samples
    if any(not 0 <= depth <= 100 for depth in values.get("depths", ())):
        raise OptionError(f"--depths: expected percentages from 0 to 100, got {args.depths}")
    if args.seed is not None:
        if args.seed not in SEEDS and not args.seed.isdecimal():
            raise OptionError(f"--seed: expected development, report or a number, got {args.seed!r}")
        values["seed"] = SEEDS[args.seed] if args.seed in SEEDS else int(args.seed)
    return values


def run_eval(args: argparse.Namespace) -> int:
    from ..eval.chat_format import chat_format
    from ..eval.runner import Results, run
    from ..eval.suites import Files, plans
    from ..eval.summary import effort
    from ..models.named import resolve
    from ..native.model import ContextOptions, Model
    from .options import context_kwargs

    files = Files(args.haystack, args.squad, args.hotpotqa, args.infinitebench)
    parts, left_out = plans(args.suite, _overrides(args), files)
    if not 0 <= args.record_gib < math.inf:
        raise OptionError(f"--record-gib: expected a number of GiB from 0 on, got {args.record_gib}")
    try:
        results = Results(args.out)
    except OSError as err:
        raise OptionError(f"--out: expected a folder that can be made and written, got {args.out}: {err}") from None
    if left_out:
        print(f"left out, for want of --squad, --hotpotqa, --infinitebench: {', '.join(left_out)}", file=sys.stderr)
    options = ContextOptions(**context_kwargs(args))
    model = Model(str(resolve(args.model)), options)
    n_before = len(results.rows)
    bar = ProgressBar("eval")
    try:
        run(
            model,
            parts,
            results,
            dequant=args.dequant,
            chat=chat_format(model, args.chat),
            record_bytes=int(args.record_gib * 2**30),
            calibration=args.calibrated,
            progress=lambda done, total, _seconds: bar(done, total),
        )
    finally:
        bar.clear()
        model.close()
    if added := effort(results.rows[n_before:]):
        print(added, file=sys.stderr)
    return 0


def run_report(args: argparse.Namespace) -> int:
    from ..eval.by_task import by_task
    from ..eval.runner import read_rows
    from ..eval.summary import document

    if args.by_task and args.markdown:
        raise OptionError("expected --by-task or --markdown, got both: the lines by task are printed")
    rows = [row for folder in args.folders for row in read_rows(folder / "results.jsonl")]
    if not rows:
        raise OptionError(f"expected results of asl-gguf eval in {', '.join(map(str, args.folders))}, found none")
    try:
        links = _write_figures(rows, args) if args.html or args.figures else []
        if args.markdown:
            args.markdown.parent.mkdir(parents=True, exist_ok=True)
            args.markdown.write_text(document(rows, args.title, links) + "\n", encoding="utf-8")
    except OSError as err:
        raise OptionError(f"expected files and a folder that can be written: {err}") from None
    if not args.markdown:
        lengths = sorted({row["length"] for row in rows})
        print("\n\n".join(by_task(rows, n) for n in lengths) if args.by_task else document(rows, args.title))
    return 0


def _write_figures(rows: list[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """Writes the page and the figures that are asked for.

    Returns:
        Markdown of the figures, as seen from the Markdown file.
    """
    from ..eval.figures import drawings
    from ..eval.page import page

    drawn = drawings(rows)
    if args.html:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(page(rows, drawn, args.title), encoding="utf-8")
    if not args.figures:
        return []
    args.figures.mkdir(parents=True, exist_ok=True)
    for drawing in drawn:
        (args.figures / f"{drawing.name}.svg").write_bytes(drawing.svg())
    if not args.markdown:
        return []
    folder = os.path.relpath(args.figures, args.markdown.parent)
    return [drawing.markdown(Path(folder).as_posix()) for drawing in drawn]
