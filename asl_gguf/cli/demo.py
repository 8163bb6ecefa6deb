"""`asl-gguf demo`: one question about a long document, with the full KV cache and with a fifth of it."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from typing import Any

from ..budget.targets import BudgetValue, room_of_one
from ..drop_in.progress import ProgressBar
from ..eval.demo_text import DemoDocument, make_document
from ..models import named
from .budgets import parse_budget
from .options import add_model_options, add_pruning_options, llama_kwargs

_MAX_TOKENS = 48
_CELL_WIDTH = 44
_COLUMNS = ("", "answer", "prefill s", "decode tok/s", "KV MiB", "selection layer", "kept tokens")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="full cache against pruned cache on a document",
        description="Finds a fact in a document, with the full KV cache and pruned.",
    )
    add_model_options(parser)
    add_pruning_options(parser, budget="0.2")
    parser.add_argument(
        "--tokens", type=int, default=2000, help="length of the document in tokens (default %(default)s)"
    )
    parser.add_argument("--demo-seed", type=int, default=0, help="another document (default %(default)s)")
    parser.set_defaults(run=demo)


def demo(args: argparse.Namespace) -> int:
    path = _model_file(args.model)
    document = _document(path, args)
    print(
        f"Document: {args.tokens} tokens, a fact hidden in it.\nQuestion: {document.question}\nExpected: {document.answer}\n",
        flush=True,
    )
    rows = [_answer(path, document, args, None), _answer(path, document, args, parse_budget(args.budget))]
    _print_table([_COLUMNS, *rows])
    right = [document.answer in row[1] for row in rows]
    print("\nboth answers are right" if all(right) else f"\nright: full cache {right[0]}, pruned {right[1]}")
    return 0 if all(right) else 1


def _model_file(model: str) -> str:
    """The model's file; a named model is fetched first if it is not here."""
    entry = named.named_models().get(model)
    if entry is None or named.is_pulled(entry):
        return str(named.resolve(model))
    print(f"fetching {entry.name} ({entry.size / 2**20:.0f} MiB)", flush=True)
    bar = ProgressBar("pull")
    try:
        return str(named.pull(model, progress=bar))
    finally:
        bar.clear()


def _document(path: str, args: argparse.Namespace) -> DemoDocument:
    from ..native.vocabulary import tokenize, vocabulary

    with vocabulary(path) as model_vocabulary:
        return make_document(lambda text: len(tokenize(model_vocabulary, text)), args.tokens, seed=args.demo_seed)


def _answer(path: str, document: DemoDocument, args: argparse.Namespace, budget: BudgetValue | None) -> tuple[str, ...]:
    """One row of the table."""
    from .. import Llama

    bar = ProgressBar("prefill")
    llm = Llama(
        path,
        n_ctx=args.tokens + 256 + _MAX_TOKENS,
        asl_budget=budget,
        asl_policy=args.policy,
        asl_dequant=args.dequant,
        asl_room=room_of_one(budget, _MAX_TOKENS),
        asl_progress=bar,
        **llama_kwargs(args),
    )
    messages: Any = [{"role": "user", "content": f"{document.text}\n\n{document.question}"}]
    try:
        result: Any = llm.create_chat_completion(messages, max_tokens=_MAX_TOKENS, temperature=0.0)
    finally:
        bar.clear()
    report, speed = llm.last_prefill, llm.last_decode
    llm.close()
    assert report is not None and speed is not None
    return (
        "full cache" if budget is None else f"budget {budget}",
        " ".join((result["choices"][0]["message"]["content"] or "").split()),
        f"{report.prefill_seconds:.2f}",
        f"{speed.tokens_per_second:.1f}" if speed.tokens_per_second else "-",
        f"{report.kv_bytes_prompt / 2**20:.1f}",
        "-" if report.selection_layer is None else f"{report.selection_layer} of {report.n_layer}",
        report.kept_of,
    )


def _print_table(columns: list[tuple[str, ...]]) -> None:
    """Prints one column per answer, one row per measure; long cells go on in the next line."""
    width = [max(len(name) for name in columns[0]), *(_CELL_WIDTH for _ in columns[1:])]
    rule = "+".join("-" * (w + 2) for w in width)
    for index, row in enumerate(zip(*columns, strict=True)):
        lines = [textwrap.wrap(cell, _CELL_WIDTH) or [""] for cell in row]
        for parts in itertools.zip_longest(*lines, fillvalue=""):
            print("|".join(f" {part:{w}} " for part, w in zip(parts, width, strict=True)).rstrip())
        if index == 0:
            print(rule)
