"""--budget of every command."""

from __future__ import annotations

import argparse
import contextlib
import re
from typing import Any

from ..budget.targets import FORMS, BudgetValue, is_target, parse_target
from ..errors import OptionError, shown
from ..policies import make_policy
from .streams import warn

_FEW_TOKENS = 100
"""a budget of fewer tokens may have been meant as a percentage"""
_BATCHES = ("256", "512", "1024", "2048", "4096", "8192")
"""sizes of batches, which -b gives to llama.cpp's programs"""

BUDGET_HELP = "0.2 or 20%: share of the prompt; 512: tokens; auto: follows the question; fit:2GiB: KV memory; ttft:5s: time to the first token"
ESCAPED_BUDGET_HELP = BUDGET_HELP.replace("%", "%%")
"""the same for argparse"""
_FIXED_HELP = ESCAPED_BUDGET_HELP.partition("; auto")[0]


class _BudgetAction(argparse.Action):
    """Warns of a -b that may have been meant as llama.cpp's."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if option_string == "-b" and values in _BATCHES:
            warn(
                f"-b {values} is a budget of {values} tokens; a batch's size is --batch-size (--budget {values} warns of nothing)"
            )
        setattr(namespace, self.dest, values)


def add_budget_option(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    """-b and --budget.

    Args:
        text: its help.
    """
    parser.add_argument("-b", "--budget", action=_BudgetAction, default=default, help=text)


def budget_help(targets: bool) -> str:
    """For argparse.

    Args:
        targets: goals and the full cache are taken, too.
    """
    return f"{ESCAPED_BUDGET_HELP}; none: full cache" if targets else _FIXED_HELP


def parse_budget(text: str, option: str = "--budget") -> BudgetValue | None:
    """A number with a point or a per cent sign is a share, one without is tokens, `none` is the full cache.

    Everything else is a goal. A few tokens are taken, with a warning: per cent may have been meant.

    Args:
        option: what messages call it.

    Raises:
        OptionError: it is none of these.
    """
    if text.lower() == "none":
        return None
    if is_target(text):
        return parse_target(text, option=option).value
    try:
        n_tokens = int(text)
    except ValueError:
        pass
    else:
        if 1 < n_tokens < _FEW_TOKENS:
            warn(
                f"{option} {text} keeps {n_tokens} tokens; for a share of the prompt pass {n_tokens}% or {n_tokens / 100}"
            )
        return n_tokens
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        meant = _meant(text)
        raise OptionError(
            f"{option}: expected a share such as 0.2 or 20%, a number of tokens such as 512, {FORMS}, or none, got {shown(text)}"
            f"{f'; did you mean {meant}?' if meant else ''}"
        ) from None


def _meant(text: str) -> str | None:
    """What a wrong budget looks like: a goal without its name, a comma in place of the point, words for a sign."""
    for guess in (f"fit:{text}", f"ttft:{text}", text.replace(",", "."), re.sub(r"\s*per\s?cent$", "%", text)):
        with contextlib.suppress(OptionError, ValueError):
            if is_target(guess):
                return str(parse_target(guess).value)
            if guess != text and 0 < float(guess.rstrip("%")) <= 100:
                return guess
    return None


def budget_of(args: argparse.Namespace) -> BudgetValue | None:
    """--budget, or what suits --policy: `auto` where the policy decides at its selection, else a fifth."""
    if args.budget is not None:
        return parse_budget(args.budget)
    policy = make_policy(args.policy)
    return "auto" if policy.decides_late or not policy.drops else 0.2


def parse_fixed_budget(text: str, why: str) -> float | int:
    """A share or a number of tokens.

    Args:
        why: why it can be nothing else, for the message.

    Raises:
        OptionError: it is neither.
    """
    budget = parse_budget(text)
    if budget is None or isinstance(budget, str):
        raise OptionError(f"--budget: expected a share or a number of tokens, got {text} ({why})")
    return budget
