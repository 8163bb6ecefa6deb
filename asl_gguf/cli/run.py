"""`asl-gguf run`: a prompt, or a question about documents, and one answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..budget.targets import room_of_one
from ..drop_in.progress import ProgressBar
from ..errors import OptionError
from ..policies import DEFAULT
from .answers import ENDLESS, add_answer_options, answer_kwargs, longest_answer, preparation
from .budgets import budget_of
from .options import (
    add_context_options,
    add_full_kv_option,
    add_keeping_options,
    add_llama_options,
    add_model_options,
    add_pruning_options,
    add_system_option,
    keeping_kwargs,
    llama_kwargs,
    model_of,
    system_message,
)
from .source import add_source_options, read_source
from .streams import print_json, warn

_LEAST_ANSWER = 256
"""tokens beyond a prompt that fills the model's context, for an answer without an end"""
_TEMPLATE_TOKENS = 256
"""room for what the chat template adds to a prompt"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="answer a prompt, or a question about a document",
        description="Answers a prompt, or a question about documents, on a pruned KV cache. A line on stderr says what was kept.",
    )
    add_model_options(parser)
    add_llama_options(parser)
    add_source_options(parser)
    add_system_option(parser)
    parser.add_argument("-st", "--single-turn", action="store_true", help=argparse.SUPPRESS)  # as it is in any case
    parser.add_argument(
        "--raw",
        "-no-cnv",
        "--no-conversation",
        action="store_true",
        help="plain completion; default: the model's chat template",
    )
    add_pruning_options(parser, budget=None)
    add_keeping_options(parser)
    add_full_kv_option(parser, "later prompts select from them; this command's only one runs as without it")
    add_context_options(parser, "prompt + answer", default="what this prompt needs", cells="budget + answer")
    add_answer_options(parser, max_tokens=256)
    parser.add_argument("--report", action="store_true", help="say more than a line about what was kept, on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the answer and the report")
    parser.set_defaults(run=run)


def needed_context(model: str, text: str, max_tokens: int) -> int:
    """Tokens for this prompt and its answer, by the model's own tokenizer; a warning if it was not trained on as many."""
    from ..models.gguf_header import n_ctx_train
    from ..models.named import resolve
    from ..native.vocabulary import tokenize, vocabulary

    path = str(resolve(model))
    with vocabulary(path) as model_vocabulary:
        n_prompt = len(tokenize(model_vocabulary, text))
    if n_prompt > (n_train := n_ctx_train(path)):
        warn(
            f"the prompt has {n_prompt:,} tokens, and this model was trained on {n_train:,}: answers may make no sense"
        )
    return n_prompt + max_tokens + _TEMPLATE_TOKENS


def answer(
    llm: Any, text: str, raw: bool, options: dict[str, Any], echo: bool, system: str | None = None
) -> tuple[str, int]:
    """Text of the answer and its tokens; with echo also printed while it grows."""
    call: Callable[..., Any] = llm.create_completion if raw else llm.create_chat_completion
    turns = [("system", system)] * (system is not None) + [("user", text)]
    prompt = text if raw else [{"role": role, "content": content} for role, content in turns]
    if not echo:
        result = call(prompt, **options)
        choice = result["choices"][0]
        return choice["text"] if raw else choice["message"]["content"] or "", result["usage"]["completion_tokens"]
    parts = []
    for chunk in call(prompt, stream=True, **options):
        choice = chunk["choices"][0]
        part = choice["text"] if raw else choice["delta"].get("content") or ""
        print(part, end="", flush=True)
        parts.append(part)
    print(flush=True)
    return "".join(parts), llm.last_decode.tokens + 1


def run(args: argparse.Namespace) -> int:
    from .. import Llama

    text, system = read_source(args), system_message(args)
    if args.raw and system is not None:
        raise OptionError("--system-prompt: expected the chat template, got --raw; put the text in front of the prompt")
    budget = budget_of(args)
    if budget is None:
        _warn_of_full_cache(args)
    options, prepare, llama_options = answer_kwargs(args), preparation(args), llama_kwargs(args) | keeping_kwargs(args)
    model = model_of(args)
    n_answer = longest_answer(args, model)
    n_ctx = args.n_ctx
    if n_ctx is None:
        endless = args.max_tokens == ENDLESS
        n_ctx = needed_context(model, f"{system or ''}{text}", _LEAST_ANSWER if endless else n_answer)
        n_ctx = max(n_ctx, n_answer) if endless else n_ctx
    bar = ProgressBar("prefill")
    llm = Llama(
        model,
        n_ctx=n_ctx,
        asl_budget=budget,
        asl_policy=args.policy,
        asl_dequant=args.dequant,
        asl_decode_ctx=args.decode_ctx,
        asl_room=room_of_one(budget, n_answer),
        asl_full_kv=args.full_kv,
        asl_progress=bar,
        **llama_options,
    )
    prepare(llm)
    try:
        completion, n_tokens = answer(llm, text, args.raw, options, echo=not args.json, system=system)
    finally:
        bar.clear()
    assert llm.last_prefill is not None and llm.last_decode is not None
    if args.json:
        print_json(_result(llm, completion, n_tokens))
    else:
        report = llm.last_prefill
        print("\n".join(report.lines(llm.last_decode)) if args.report else report, file=sys.stderr)
    return 0


def _warn_of_full_cache(args: argparse.Namespace) -> None:
    """Says which options mean nothing where nothing is pruned."""
    given = {"--policy": args.policy != DEFAULT, "--protect": args.protect, "--guard": args.guard is not None}
    given["--decode-ctx"] = args.decode_ctx is not None
    if idle := [flag for flag, is_given in given.items() if is_given]:
        warn(f"{', '.join(idle)}: without effect with --budget none, which keeps all tokens")


def _result(llm: Any, completion: str, n_tokens: int) -> dict[str, Any]:
    report = llm.last_prefill.to_dict()
    return {
        "text": completion,
        "prompt_tokens": report["prompt_tokens"],
        "completion_tokens": n_tokens,
        "decode_tokens_per_second": llm.last_decode.tokens_per_second,
        "report": report,
    }
