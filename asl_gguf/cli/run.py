"""`asl-gguf run`: one prompt, one answer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import PromptError
from .options import add_full_kv_option, add_model_options, add_pruning_options, llama_kwargs, parse_budget
from .progress import ProgressBar
from .streams import print_json, standard_input

_TEMPLATE_TOKENS = 256
"""room for what the chat template adds to a prompt"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("run", help="answer a prompt", description="Answers a prompt on a pruned KV cache.")
    add_model_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", help="the prompt")
    source.add_argument("-f", "--file", type=Path, help="file with the prompt")
    source.add_argument("stdin", nargs="?", choices=["-"], help="- reads the prompt from standard input")
    parser.add_argument("--raw", action="store_true", help="plain completion; default: the model's chat template")
    add_pruning_options(parser, budget="0.2")
    add_full_kv_option(parser, "later prompts select from them; this command's only one runs as without it")
    parser.add_argument(
        "-c", "--n-ctx", type=int, default=None, help="longest prompt + answer (default: what this prompt needs)"
    )
    parser.add_argument(
        "--decode-ctx", type=int, default=None, help="KV cells of the decode context (default: budget + answer)"
    )
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=256, help="longest answer in tokens (default %(default)s)"
    )
    parser.add_argument("--temp", type=float, default=0.0, help="temperature (default %(default)s: greedy)")
    parser.add_argument("-s", "--seed", type=int, default=None, help="seed of the sampler")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the answer and the report")
    parser.set_defaults(run=run)


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text.

    Raises:
        PromptError: the file cannot be read as UTF-8 text, or the prompt is empty.
    """
    source = "--prompt" if args.prompt is not None else args.file or "standard input"
    try:
        if args.prompt is not None:
            args.prompt.encode("utf-8")  # bytes that are no UTF-8 arrive from the shell as lone surrogates
            text = args.prompt
        else:
            text = args.file.read_text(encoding="utf-8") if args.file else standard_input().read().decode("utf-8")
    except (OSError, UnicodeError) as err:
        raise PromptError(f"expected readable UTF-8 text, got {source}: {err}") from err
    if not text.strip():
        raise PromptError("expected a prompt with text in it, got an empty one")
    return text


def needed_context(model: str, text: str, max_tokens: int) -> int:
    """Tokens for this prompt and its answer, by the model's own tokenizer."""
    from ..models.named import resolve
    from ..native.vocabulary import tokenize, vocabulary

    with vocabulary(str(resolve(model))) as model_vocabulary:
        return len(tokenize(model_vocabulary, text)) + max_tokens + _TEMPLATE_TOKENS


def answer(llm: Any, text: str, args: argparse.Namespace, echo: bool) -> tuple[str, int]:
    """Text of the answer and its tokens; with echo also printed while it grows."""
    call: Callable[..., Any] = llm.create_completion if args.raw else llm.create_chat_completion
    prompt = text if args.raw else [{"role": "user", "content": text}]
    options = {"max_tokens": args.max_tokens, "temperature": args.temp, "seed": args.seed}
    if not echo:
        result = call(prompt, **options)
        choice = result["choices"][0]
        return choice["text"] if args.raw else choice["message"]["content"] or "", result["usage"]["completion_tokens"]
    parts = []
    for chunk in call(prompt, stream=True, **options):
        choice = chunk["choices"][0]
        part = choice["text"] if args.raw else choice["delta"].get("content") or ""
        print(part, end="", flush=True)
        parts.append(part)
    print()
    return "".join(parts), llm.last_decode.tokens + 1


def run(args: argparse.Namespace) -> int:
    from .. import Llama

    text = read_prompt(args)
    budget = parse_budget(args.budget)
    n_ctx = args.n_ctx or needed_context(args.model, text, args.max_tokens)
    bar = ProgressBar("prefill")
    llm = Llama(
        args.model,
        n_ctx=n_ctx,
        asl_budget=budget,
        asl_policy=args.policy,
        asl_dequant=args.dequant,
        asl_decode_ctx=args.decode_ctx,
        asl_room=args.max_tokens,
        asl_full_kv=args.full_kv,
        asl_progress=bar,
        **llama_kwargs(args),
    )
    try:
        completion, n_tokens = answer(llm, text, args, echo=not args.json)
    finally:
        bar.clear()
    if args.json:
        assert llm.last_prefill is not None and llm.last_decode is not None
        report = llm.last_prefill.to_dict()
        result = {
            "text": completion,
            "prompt_tokens": report["prompt_tokens"],
            "completion_tokens": n_tokens,
            "decode_tokens_per_second": llm.last_decode.tokens_per_second,
            "report": report,
        }
        print_json(result)
    return 0
