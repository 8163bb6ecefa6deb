"""Options of an answer: how long it is, and how its tokens are chosen. Those that llama.cpp has work as they do there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .sampler_chain import Samplers
from .sampling import SAMPLERS, add_sampling_options, samplers_of, sampling_kwargs
from .streams import warn
from .templates import add_template_options, template_of

ENDLESS = -1
"""--max-tokens of an answer that ends by itself"""


def add_length_option(parser: argparse.ArgumentParser, max_tokens: int, more: str = "") -> None:
    """-n.

    Args:
        max_tokens: the default.
        more: of its help.
    """
    parser.add_argument(
        "-n", "--max-tokens", "--predict", "--n-predict", type=int, default=max_tokens,
        help=f"longest answer in tokens{more} (default %(default)s)",
    )  # fmt: skip


def add_answer_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Length of the answer, and how its tokens are sampled."""
    add_length_option(parser, max_tokens, "; -1: as long as the context is")
    parser.add_argument(
        "--temp", "--temperature", type=float, default=0.0, help="temperature (default %(default)s: greedy)"
    )
    parser.add_argument("--top-k", type=int, default=None, help="sample among the K likeliest tokens (40; 0: all)")
    parser.add_argument("--top-p", type=float, default=None, help="sample among tokens of this probability (0.95)")
    parser.add_argument("--min-p", type=float, default=None, help="least probability, to the likeliest token's (0.05)")
    parser.add_argument("--repeat-penalty", type=float, default=None, help="penalty on repeated tokens (1.0: none)")
    parser.add_argument("-s", "--seed", type=int, default=None, help="seed of the sampler (default, and -1: random)")
    add_sampling_options(parser)
    add_template_options(parser)


def answer_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `create_completion` from the answer's options; a warning for those that change nothing."""
    given = {name: getattr(args, name) for name in ("top_k", "top_p", "min_p", "repeat_penalty", "seed")}
    given = {name: value for name, value in given.items() if value is not None} | sampling_kwargs(args)
    _warn_of_idle(args, given)
    if given.get("seed") == -1:
        del given["seed"]
    max_tokens = None if args.max_tokens == ENDLESS else args.max_tokens
    return {"max_tokens": max_tokens, "temperature": args.temp, **given}


def preparation(args: argparse.Namespace) -> Callable[[Any], None]:
    """What is done to a `Llama` once it is loaded: samplers and a template that it has no arguments for.

    Raises:
        OptionError, PromptError: an option of them is outside its domain.
    """
    samplers, template = samplers_of(args), template_of(args)

    def prepare(llm: Any) -> None:
        samplers.install(llm)
        template.install(llm)

    return prepare


def _warn_of_idle(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Says which samplers change nothing beside the others."""
    of_chain = [name for name in Samplers.IDLE_WHEN_GREEDY if getattr(args, name, None) is not None]
    idle: tuple[str, ...]
    if args.temp == 0:
        idle = ("top_k", "top_p", "min_p", "seed", *SAMPLERS, *of_chain)
        why = "at --temp 0, which takes the likeliest token; pass --temp 0.8 to sample"
    elif given.get("mirostat_mode"):
        idle = ("top_k", "top_p", "min_p", "typical_p", *of_chain)
        why = "beside --mirostat, which chooses in their place"
    else:
        idle, why = ("mirostat_eta", "mirostat_tau"), "without --mirostat 1 or 2"
    if flags := [flag_of(name) for name in (*given, *of_chain) if name in idle]:
        warn(f"{', '.join(flags)}: without effect {why}")


def longest_answer(args: argparse.Namespace, model: str) -> int:
    """Tokens that an answer may take: --max-tokens, or the context's where it is to end by itself."""
    if args.max_tokens != ENDLESS:
        return int(args.max_tokens)
    from ..models.gguf_header import n_ctx_train
    from ..models.named import resolve

    return int(args.n_ctx or n_ctx_train(str(resolve(model))))


def flag_of(name: str) -> str:
    """An option as it is typed, from its keyword."""
    spelled = {"typical_p": "--typical", "mirostat_mode": "--mirostat", "mirostat_eta": "--mirostat-lr",
        "mirostat_tau": "--mirostat-ent", "n_batch": "--batch-size"}  # fmt: skip
    return spelled.get(name, f"--{name.replace('_', '-')}")
