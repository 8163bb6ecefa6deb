"""`asl-gguf inspect`: a page that shows what a policy kept of a prompt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..drop_in.progress import ProgressBar
from ..errors import OptionError
from ..policies import parse_policy
from .answers import add_length_option
from .budgets import parse_budget
from .options import add_llama_options, add_model_options, add_pruning_options, check_out, llama_kwargs, model_of
from .run import needed_context
from .source import add_source_options, read_source
from .streams import warn

_DEMO_TOKENS = 2000


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a policy kept of a prompt, as a page",
        description="Answers a prompt and writes one HTML page: kept tokens, variance trace, attention mass, rows.",
    )
    add_model_options(parser)
    add_llama_options(parser)
    add_pruning_options(parser, budget="0.2")
    add_prompt_options(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="HTML file to write")
    parser.add_argument(
        "--png", type=Path, default=None, metavar="FOLDER", help="write the charts as PNG too; needs matplotlib"
    )
    parser.set_defaults(run=inspect)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Documents and question, --demo, and how the answer is made."""
    add_source_options(parser)
    parser.add_argument("--prompt-file", action="append", dest="files", help=argparse.SUPPRESS)  # -f without -q
    parser.add_argument("--demo", action="store_true", help="the document and question of asl-gguf demo")
    parser.add_argument(
        "--tokens", type=int, default=None, help=f"length of the demo's document (default {_DEMO_TOKENS})"
    )
    parser.add_argument("--demo-seed", type=int, default=None, help="another demo document (default 0)")
    parser.add_argument("--raw", action="store_true", help="plain completion; default: the model's chat template")
    add_length_option(parser, 48)


def make_question(args: argparse.Namespace, progress: ProgressBar) -> Any:
    """The `Question` that the options describe.

    Raises:
        PromptError, OptionError: as `read_source`.
    """
    from ..inspect.inspection import Question

    text = None if args.demo else read_source(args)
    given = {"--tokens": args.tokens, "--demo-seed": args.demo_seed}
    if not args.demo and (idle := [flag for flag, value in given.items() if value is not None]):
        warn(f"{', '.join(idle)}: without effect without --demo")
    options = llama_kwargs(args) | {"asl_dequant": args.dequant, "asl_progress": progress}
    model = model_of(args)
    text = _demo_text(model, args) if text is None else text
    n_ctx = needed_context(model, text, args.max_tokens)
    return Question(model, text, n_ctx, args.max_tokens, args.raw, options)


def _demo_text(model: str, args: argparse.Namespace) -> str:
    from ..eval.demo_text import make_document
    from ..models.named import resolve
    from ..native.vocabulary import tokenize, vocabulary

    if args.files or args.stdin or args.prompt or args.question:
        raise OptionError(
            "--demo: expected no -f, -q, -p or - beside it, got one; it has its own document and question"
        )
    with vocabulary(str(resolve(model))) as model_vocabulary:
        n_tokens = _DEMO_TOKENS if args.tokens is None else args.tokens
        document = make_document(lambda text: len(tokenize(model_vocabulary, text)), n_tokens, seed=args.demo_seed or 0)
    return f"{document.text}\n\n{document.question}"


def inspect(args: argparse.Namespace) -> int:
    from ..inspect.html_page import page
    from ..inspect.inspection import inspect_prompt
    from ..inspect.plots import charts, require_matplotlib, save_png

    budget = parse_budget(args.budget)
    parse_policy(args.policy)  # refused before anything is loaded
    check_out(args.out)
    if args.png is not None:
        require_matplotlib()
    bar = ProgressBar("prefill")
    question = make_question(args, bar)
    try:
        inspection = inspect_prompt(question, budget, args.policy)
    finally:
        bar.clear()
    _write(args.out, page(inspection))
    pictures = [] if args.png is None else save_png(charts(inspection), args.png)
    report = inspection.report
    print(f"kept {report.kept_tokens} of {report.prompt_tokens} tokens; answer: {' '.join(inspection.answer.split())}")
    if report.calibration:
        print(f"calibration: {report.calibration}")
    print("wrote", *[args.out, *pictures])
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as err:
        raise OptionError(f"--out: expected a file that can be written, got {path}: {err}") from None
