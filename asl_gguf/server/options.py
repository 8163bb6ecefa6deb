"""The `--asl-*` flags of `asl-gguf serve`, from one definition: command line, environment, help and JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..budget.share import Budget
from ..budget.targets import Auto, check_budget, is_target
from ..cache import packing
from ..errors import OptionError
from ..native.dequant import DEQUANT_MODES
from ..policies import DEFAULT, Policy, make_policy
from ..policies.protect import ROLES


@dataclass(frozen=True)
class Flag:
    """One flag: `--asl-room N`, LLAMA_ARG_ASL_ROOM, the field `room` of Options."""

    field: str
    parse: Callable[[str], Any]
    metavar: str
    default: str
    help: str

    @property
    def option(self) -> str:
        return f"--asl-{self.field.replace('_', '-')}"

    @property
    def env(self) -> str:
        return f"LLAMA_ARG_ASL_{self.field.upper()}"


def _percent(text: str) -> float:
    """Raises ValueError if there is no per cent sign."""
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float("no share")


def parse_auto(text: str) -> Auto:
    """A budget that follows the question.

    Raises:
        OptionError: it is another goal, or none.
    """
    if text.lower().startswith(("fit:", "ttft:")):
        raise OptionError(
            f"expected a share, a number of tokens or auto, got {text!r}: slots share memory and time, so no prompt has a "
            "size or a time of its own"
        )
    return Auto.parse(text)


def parse_budget(text: str) -> float | int | Auto | None:
    """0.2 is a share, 512 are tokens, auto follows the question, none is llama.cpp's server as it is.

    Raises:
        OptionError: it is none of these.
    """
    if text == "none":
        return None
    if is_target(text):
        return parse_auto(text)
    for kind in (int, float, _percent):
        try:
            value = kind(text)
        except ValueError:
            continue
        return Budget(value).value
    raise OptionError(
        f"expected a share such as 0.2 or 20%, a number of tokens such as 512, auto or none, got {text!r}"
    )


def parse_policy(text: str) -> Policy:
    """A policy by name, with parameters or without.

    Raises:
        OptionError: there is none, or it keeps different numbers of rows in layers.
    """
    return check_even(make_policy(text))


def check_even(policy: Policy) -> Policy:
    """Raises OptionError for a policy whose cells cannot be shared with other slots."""
    n_tokens, n_kept = 1 << 20, 1 << 16
    if policy.drops and policy.max_rows(n_tokens, n_kept) != n_kept:
        raise OptionError(
            f"expected a policy that keeps as many rows in every layer, got {policy.name}: such cells cannot move into a slot; "
            "pass asl-span, asl, fastkv or snapkv without cache_k"
        )
    return policy


def _count(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise OptionError(f"expected a whole number of at least {least}, got {text!r}")
    return int(text)


def _one_of(text: str, names: Sequence[str]) -> str:
    if text not in names:
        raise OptionError(f"expected one of {', '.join(names)}, got {text!r}")
    return text


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(part.strip() for part in text.split(",") if part.strip() and text != "none")
    if wrong := [role for role in roles if role not in ROLES]:
        raise OptionError(f"expected none or some of {','.join(ROLES)}, got {wrong[0]!r}")
    return roles


def _guard(text: str) -> float | None:
    if text == "none":
        return None
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise OptionError(f"expected a share of the attention in (0, 1] or none, got {text!r}")
    return share


def _full_kv(text: str) -> bool | str:
    """Off, on, or the type that rows are quantised to."""
    return {"off": False, "on": True}.get(_one_of(text, ("off", "on", *packing.KINDS)), text)


_BUDGET = (
    "0.2: share of a prompt that is kept; 512: tokens; auto: follows the question; none: llama.cpp's server as it is"
)
FLAGS = (
    Flag("budget", parse_budget, "N", "0.2", _BUDGET),
    Flag("policy", parse_policy, "NAME", DEFAULT, "what to keep: name or name:parameter=value:..."),
    Flag("room", lambda text: _count(text, 1), "N", "1024", "KV cells of a slot beside the budget, for answers and turns"),
    Flag("min_prompt", lambda text: _count(text, 0), "N", "256", "prompts up to so many tokens are left alone by a share"),
    Flag("dequant", lambda text: _one_of(text, tuple(DEQUANT_MODES)), "MODE", "auto", f"form of weights while their layer runs on CPUs: {', '.join(DEQUANT_MODES)}"),
    Flag("protect", _roles, "ROLES", "none", f"parts of a chat that are always kept: some of {','.join(ROLES)}"),
    Flag("guard", _guard, "SHARE", "none", "attention that kept K/V must hold, or the prompt gets a larger budget"),
    Flag("full_kv", _full_kv, "MODE", "off", f"K/V of all tokens in host memory, to select from again: off, on, {', '.join(packing.KINDS)}"),
    Flag("slice_ms", lambda text: _count(text, 1), "MS", "50", "prefill between two tokens of other slots"),
    Flag("wait", lambda text: _count(text, 1), "S", "600", "seconds that a prompt waits for a slot or memory; then 503"),
    Flag("answers", lambda text: _count(text, 0), "N", "8", "last answers that the page at /asl shows; 0: no page"),
    Flag("open", lambda text: _one_of(text, ("off", "on")) == "on", "MODE", "off", "open the page at /asl in a browser: off, on"),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    budget: float | int | Auto | None
    """None: llama.cpp's server as it is"""
    policy: Policy
    given_policy: str
    """as it was written"""
    room: int
    min_prompt: int
    dequant: str
    protect: tuple[str, ...]
    guard: float | None
    full_kv: bool | str
    slice_ms: int
    wait: int
    answers: int
    open: bool
    texts: Mapping[str, str]
    """flags that were given, by field, as they were written"""

    @classmethod
    def make(cls, texts: Mapping[str, str]) -> Options:
        """Reads the texts of some flags, by field. The others have their defaults.

        Raises:
            OptionError: a value is outside its domain; the message begins with the flag.
        """
        values = {}
        for flag in FLAGS:
            try:
                values[flag.field] = flag.parse(texts.get(flag.field, flag.default))
            except OptionError as err:
                raise OptionError(f"{flag.option}: {err}") from err
        options = cls(given_policy=texts.get("policy", DEFAULT), texts=dict(texts), **values)
        if options.budget is not None:
            try:
                check_budget(options.make_budget(options.budget), options.policy)
            except OptionError as err:
                raise OptionError(f"--asl-budget: {err}") from err
        elif options.full_kv:
            raise OptionError(
                "--asl-full-kv: expected --asl-budget with it, got none, with which every K/V is in the cache"
            )
        return options

    def make_budget(self, value: float | int | Auto) -> Budget | Auto:
        """A budget that leaves short prompts alone as the server does."""
        return replace(value, min_prompt=self.min_prompt) if isinstance(value, Auto) else Budget(value, self.min_prompt)

    def to_env(self) -> dict[str, str]:
        """For a process with the same flags."""
        return {flag.env: self.texts[flag.field] for flag in FLAGS if flag.field in self.texts}

    def to_dict(self) -> dict[str, Any]:
        """For /props."""
        values = {flag.field: getattr(self, flag.field) for flag in FLAGS}
        budget = self.budget.value if isinstance(self.budget, Auto) else self.budget
        return {**values, "budget": budget, "policy": self.given_policy, "protect": list(self.protect)}


def split(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Options, list[str]]:
    """Our options, and the arguments that are llama-server's, in their order.

    Raises:
        OptionError: an unknown `--asl-*` flag, a flag without a value, or a value outside its domain.
    """
    env = os.environ if env is None else env
    texts = {flag.field: env[flag.env] for flag in FLAGS if flag.env in env}
    known = {flag.option: flag for flag in FLAGS}
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if not name.startswith(("--asl-", "--asl_")):
            rest.append(argument)
            continue
        name = name.replace("_", "-")  # as llama.cpp does
        if name not in known:
            raise OptionError(f"expected one of {', '.join(known)}, got {name}")
        text = value if equals else next(left, None)
        if text is None:
            raise OptionError(f"{name}: expected a value, got none")
        texts[known[name].field] = text
    return Options.make(texts), rest


def help_text() -> str:
    """The flags for --help."""
    lines = []
    for flag in FLAGS:
        lines.append(f"  {f'{flag.option} {flag.metavar}':26}{flag.help} (default {flag.default}; env {flag.env})")
    return "\n".join(lines)
