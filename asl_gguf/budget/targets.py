"""Budgets written as a goal: `fit:2GiB` (KV memory) and `ttft:5s` (time to the first token)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ..errors import OptionError, shown
from ..policies import Policy
from .share import ROOM, Budget

_UNITS: dict[str, dict[str, int | Fraction]] = {
    "fit": {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "ttft": {"ms": Fraction(1, 1000), "s": 1, "min": 60},
}
FORMS = (
    "'auto' or 'auto:LEAST-MOST' (follows the question, between two shares, such as auto:0.05-0.4 or auto:5%-40%), "
    "'fit:SIZE' (KV memory: a number and B, KB, MB, GB, KiB, MiB or GiB, such as fit:2GiB) or 'ttft:TIME' (time to the "
    "first token: a number and ms, s or min, such as ttft:5s)"
)
BudgetValue = float | int | str
"""what users give: a share, a number of tokens, or a goal"""


def _share(number: str, sign: str) -> float:
    return float(number) / 100 if sign else float(number)


@dataclass(frozen=True)
class Auto:
    """A budget that follows the question, between two shares of the prompt."""

    value: str
    """as it was written"""
    least: float = 0.05
    most: float = 0.4
    min_prompt: int = Budget.min_prompt
    """prompts up to this length are not pruned"""

    @classmethod
    def parse(cls, text: str, min_prompt: int = Budget.min_prompt, option: str = "asl_budget") -> Auto:
        """Reads `auto` or `auto:LEAST-MOST`, in any case.

        Raises:
            OptionError: it is neither; the message begins with the option's name.
        """
        Budget(1, min_prompt)  # refuses a wrong min_prompt
        if text.lower() == "auto":
            return cls(text, min_prompt=min_prompt)
        number = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)"
        match = re.fullmatch(rf"auto:{number}-{number}", text, re.IGNORECASE | re.ASCII)
        least, most = (0.0, 0.0) if match is None else (_share(match[1], match[2]), _share(match[3], match[4]))
        if not 0 < least <= most <= 1:
            raise OptionError(f"{option}: expected {FORMS}, with 0 < LEAST <= MOST <= 1, got {shown(text)}")
        return cls(text, least, most, min_prompt)

    def check(self, policy: Policy) -> None:
        """Raises OptionError if a policy cannot decide at its selection how many tokens are kept."""
        if policy.drops and not policy.decides_late:
            raise OptionError(
                f"asl_budget: expected a policy that decides at its selection layer for {self.value}, such as asl-span or "
                f"asl, got {policy.name}; take another policy or a share"
            )


@dataclass(frozen=True)
class Target:
    """A goal from which the number of tokens to keep follows, once the model is known."""

    value: str
    """as it was written"""
    kind: Literal["fit", "ttft"]
    amount: float
    """bytes or seconds, more than 0"""
    min_prompt: int = Budget.min_prompt
    """prompts up to this length are not pruned for a time"""

    @classmethod
    def parse(cls, text: str, min_prompt: int = Budget.min_prompt, option: str = "asl_budget") -> Target:
        """Reads `fit:SIZE` or `ttft:TIME`, in any case.

        Raises:
            OptionError: it is neither; the message begins with the option's name.
        """
        Budget(1, min_prompt)  # refuses a wrong min_prompt
        match = re.fullmatch(r"(fit|ttft):([0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})([a-z]+)", text, re.IGNORECASE)
        if match is not None:
            kind: Literal["fit", "ttft"] = "fit" if match[1].lower() == "fit" else "ttft"
            unit = _UNITS[kind].get(match[3].lower())
            if unit is not None and (amount := Fraction(match[2]) * unit) > 0:
                return cls(text, kind, int(amount) if kind == "fit" else float(amount), min_prompt)
        raise OptionError(f"{option}: expected {FORMS}, got {shown(text)}")


def parse_target(text: str, min_prompt: int = Budget.min_prompt, option: str = "asl_budget") -> Auto | Target:
    """Reads a budget that is a goal, or that follows the question.

    Raises:
        OptionError: it is none; the message begins with the option's name.
    """
    return (Auto if text.lower().startswith("auto") else Target).parse(text, min_prompt, option)


def make_budget(value: BudgetValue, min_prompt: int) -> Budget | Auto | Target:
    """`asl_budget` as an object.

    Raises:
        OptionError: it is none of the accepted forms.
    """
    if not isinstance(value, str):
        return Budget(value, min_prompt)
    if not is_target(value):
        raise OptionError(
            f"asl_budget: expected a float in (0, 1], an int of at least 1 token, {FORMS}, got {shown(value)}"
        )
    return parse_target(value, min_prompt)


def check_budget(budget: Budget | Auto | Target, policy: Policy) -> None:
    """Raises OptionError if this policy keeps to no such budget, whatever the model."""
    if not policy.drops:
        return
    if isinstance(budget, Budget):
        budget.check(policy.min_kept)
    elif isinstance(budget, Auto):
        budget.check(policy)
    elif budget.kind == "ttft" and policy.first_selection(2) is None:
        raise OptionError(
            f"asl_budget: expected a policy whose deeper layers see fewer tokens for {budget.value}, such as asl-span, "
            f"got {policy.name}, under which a prefill takes as long whatever is kept; take another policy or a share"
        )


def is_target(text: str) -> bool:
    """Whether a text is meant as a goal, however wrong the rest of it is."""
    return text.lower().startswith(("fit:", "ttft:", "auto:")) or text.lower() == "auto"


def room_of_one(budget: BudgetValue | None, max_tokens: int) -> int:
    """KV cells beside the budget, for one prompt and its answer.

    At least those of a `Llama`: layers hold more rows there until tokens are selected. What memory limits gets no more than
    the answer takes.
    """
    limited = isinstance(budget, str) and budget.lower().startswith("fit:")
    return max_tokens if limited else max(ROOM, max_tokens)
