"""How an answer's tokens are chosen: llama.cpp's samplers, grammars, and the texts that end it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from ..errors import OptionError, shown
from .documents import read_plain
from .sampler_chain import DRY_BREAKERS, Samplers
from .source import require_utf8, unescaped

SAMPLERS = ("typical_p", "mirostat_mode", "mirostat_eta", "mirostat_tau")
"""keywords of `create_completion` that change nothing at temperature 0"""
_BIAS = re.compile(r"\s*(\d{1,9})\s*([+-])\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf)\s*", re.IGNORECASE)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Penalties, grammars, and samplers that few use."""
    group = parser.add_argument_group("more options of llama.cpp's programs: the answer")
    add = group.add_argument
    add("--presence-penalty", type=float, metavar="N", help="penalty on tokens that are there already (0: none)")
    add("--frequency-penalty", type=float, metavar="N", help="the same for each time that they are (0: none)")
    add("--repeat-last-n", type=int, metavar="N", help="the answer's last N tokens are penalised (64; 0: none)")
    add("--dry-multiplier", type=float, metavar="N", help="DRY: penalty on repeated sequences of the answer (0: none)")
    add("--dry-base", type=float, metavar="N", help="DRY: its growth with their length (1.75)")
    add("--dry-allowed-length", type=int, metavar="N", help="DRY: shorter sequences are free (2)")
    add("--dry-penalty-last-n", type=int, metavar="N", help="DRY: tokens that are looked at (64; 0: none)")
    add(
        "--dry-sequence-breaker", action="append", metavar="TEXT",
        help=r"DRY: ends a sequence; may be repeated; none: nothing does (\n : \" *)",
    )  # fmt: skip
    add(
        "--typical", "--typical-p", type=float, dest="typical_p", metavar="P", help="locally typical sampling (1: none)"
    )
    add("--top-nsigma", "--top-n-sigma", type=float, metavar="N", help="logits within N standard deviations (-1: all)")
    add("--xtc-probability", type=float, metavar="P", help="XTC: how often likely tokens are left out (0: never)")
    add("--xtc-threshold", type=float, metavar="P", help="XTC: what is likely (0.1)")
    add("--dynatemp-range", type=float, metavar="N", help="--temp varies by this with the entropy (0: it does not)")
    add("--dynatemp-exp", type=float, metavar="N", help="how (1)")
    add("--mirostat", type=int, choices=(0, 1, 2), dest="mirostat_mode", help="Mirostat sampling (0: none)")
    add("--mirostat-lr", type=float, dest="mirostat_eta", metavar="N", help="its learning rate (0.1)")
    add("--mirostat-ent", type=float, dest="mirostat_tau", metavar="N", help="its target entropy (5.0)")
    add("-l", "--logit-bias", action="append", metavar="TOKEN(+|-)BIAS", help="15043+1 makes token 15043 likelier")
    add("--ignore-eos", action="store_true", help="the answer is as long as --max-tokens says")
    add("-r", "--reverse-prompt", action="append", dest="stop", metavar="TEXT", help="ends the answer; may be repeated")
    add("--grammar", metavar="GBNF", help="what the answer must look like")
    add("--grammar-file", metavar="FILE", help="the same in a file")
    add("-j", "--json-schema", metavar="JSON", help="a schema that the answer follows; {} for any JSON")
    add("-jf", "--json-schema-file", metavar="FILE", help="the same in a file")


def sampling_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `create_completion` from them: those that were given.

    Raises:
        OptionError: several say what the answer looks like, one cannot be made a grammar of, or an empty text ends it.
        PromptError: a file cannot be read, or a text is no UTF-8.
    """
    names = ("presence_penalty", "frequency_penalty", *SAMPLERS)
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if stop := _texts(args, "stop", "--reverse-prompt"):
        if "" in stop:
            raise OptionError(
                "--reverse-prompt: expected a text that ends the answer, got an empty one, which every answer has"
            )
        given["stop"] = stop
    grammar = _grammar(args)
    return given | ({"grammar": grammar} if grammar is not None else {})


def samplers_of(args: argparse.Namespace) -> Samplers:
    """Those that `create_completion` has no keyword for.

    Raises:
        OptionError: --dry-sequence-breaker is empty, or --logit-bias is in another form.
        PromptError: it is no UTF-8.
    """
    breakers = _texts(args, "dry_sequence_breaker", "--dry-sequence-breaker")
    if breakers is not None and "" in breakers:
        raise OptionError("--dry-sequence-breaker: expected a text, got an empty one; none: nothing ends a sequence")
    if breakers is not None:
        last_none = max((i + 1 for i, text in enumerate(breakers) if text == "none"), default=0)
        breakers = breakers[last_none:]
    given = {name: getattr(args, name, None) for name in Samplers.NUMBERS}
    return Samplers(
        dry_breakers=DRY_BREAKERS if breakers is None else tuple(breakers),
        logit_bias=tuple(map(_bias, getattr(args, "logit_bias", None) or [])),
        ignore_eos=bool(getattr(args, "ignore_eos", False)),
        **{name: value for name, value in given.items() if value is not None},
    )


def _texts(args: argparse.Namespace, name: str, option: str) -> list[str] | None:
    """The texts of an option that may be repeated, escapes read."""
    texts = getattr(args, name, None)
    if texts is None:
        return None
    for text in texts:
        require_utf8(option, text)
    return [unescaped(args, text) for text in texts]


def _bias(text: str) -> tuple[int, float]:
    """A token and its bias."""
    found = _BIAS.fullmatch(text)
    if found is None:
        raise OptionError(f"--logit-bias: expected TOKEN+BIAS or TOKEN-BIAS such as 15043+1, got {shown(text)}")
    return int(found[1]), float(f"{found[2]}{found[3]}")


def _grammar(args: argparse.Namespace) -> Any:
    kinds: dict[str, Callable[[Any, str], Any]] = {
        "grammar": lambda kind, text: kind.from_string(text, verbose=False),
        "json_schema": lambda kind, text: kind.from_json_schema(text, verbose=False),
    }
    texts = [
        (option, make, read_plain(value) if option.endswith("_file") else value)
        for name, make in kinds.items()
        for option in (name, f"{name}_file")
        if (value := getattr(args, option, None)) is not None
    ]
    if not texts:
        return None
    flags = [f"--{option.replace('_', '-')}" for option, _, _ in texts]
    if len(texts) > 1:
        raise OptionError(
            f"{flags[0]}: expected alone, got it with {', '.join(flags[1:])}: one grammar holds for an answer"
        )
    from ..native.bindings import llama_cpp

    _, make, text = texts[0]
    require_utf8(flags[0], text)
    try:
        return make(llama_cpp.LlamaGrammar, text)
    except Exception as err:  # json's, and what the parent raises on schemas that it does not know
        raise OptionError(f"{flags[0]}: expected what a grammar can be made of, got {text!r:.80}: {err}") from err
