"""`asl-gguf inspect`: a page that shows what a policy kept of a prompt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..policies import parse_policy
from .options import add_model_options, add_pruning_options, llama_kwargs, parse_budget
from .progress import ProgressBar
from .run import needed_context, read_prompt


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a policy kept of a prompt, as a page",
        description="Answers a prompt and writes one HTML page: kept tokens, variance trace, attention mass, rows.",
    )
    add_model_options(parser)
    add_pruning_options(parser, budget="0.2")
    add_prompt_options(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="HTML file to write")
    parser.add_argument(
        "--png", type=Path, default=None, metavar="FOLDER", help="write the charts as PNG too; needs matplotlib"
    )
    parser.set_defaults(run=inspect)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """--file and --question, --prompt-file, --demo, and how the answer is made."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-f", "--file", type=Path, help="a document, to be asked about with --question")
    source.add_argument("--prompt-file", type=Path, help="file with the whole prompt")
    source.add_argument("--demo", action="store_true", help="the document and question of asl-gguf demo")
    parser.add_argument("-q", "--question", help="asked about --file, after its text")
    parser.add_argument("--tokens", type=int, default=2000, help="length of the demo's document (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another demo document (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="plain completion; default: the model's chat template")
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=48, help="longest answer in tokens (default %(default)s)"
    )


def make_question(args: argparse.Namespace, progress: ProgressBar) -> Any:
    """The `Question` that the options describe.

    Raises:
        PromptError: a file cannot be read as UTF-8 text, or is empty.
        OptionError: --question without --file, or the other way round.
    """
    from ..inspect.inspection import Question

    text = _prompt_text(args)
    options = llama_kwargs(args) | {"asl_dequant": args.dequant, "asl_progress": progress}
    n_ctx = needed_context(args.model, text, args.max_tokens)
    return Question(args.model, text, n_ctx, args.max_tokens, args.raw, options)


def _prompt_text(args: argparse.Namespace) -> str:
    if (args.question is None) != (args.file is None):
        raise OptionError("--question: expected together with --file, got one of them alone")
    if args.demo:
        return _demo_text(args)
    text = read_prompt(argparse.Namespace(prompt=None, file=args.file or args.prompt_file))
    if args.question is None:
        return text
    return f"{text}\n\n{read_prompt(argparse.Namespace(prompt=args.question, file=None))}"


def _demo_text(args: argparse.Namespace) -> str:
    from ..eval.demo_text import make_document
    from ..models.named import resolve
    from ..native.vocabulary import tokenize, vocabulary

    with vocabulary(str(resolve(args.model))) as model_vocabulary:
        document = make_document(lambda text: len(tokenize(model_vocabulary, text)), args.tokens, seed=args.seed)
    return f"{document.text}\n\n{document.question}"


def inspect(args: argparse.Namespace) -> int:
    from ..inspect.html_page import page
    from ..inspect.inspection import inspect_prompt
    from ..inspect.plots import charts, require_matplotlib, save_png

    budget = parse_budget(args.budget)
    parse_policy(args.policy)  # refused before anything is loaded
    if not args.out.absolute().parent.is_dir() or args.out.is_dir():
        raise OptionError(f"--out: expected a file in a folder that exists, got {args.out}")
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
