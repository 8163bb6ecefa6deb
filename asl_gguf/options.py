"""The `asl_*` keyword arguments of `Llama`, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .budget import Budget
from .errors import OptionError
from .policies import Full, Policy, make_policy
from .session import DEQUANT_MODES, Progress


@dataclass(frozen=True)
class AslOptions:
    """Options of one `Llama`, under their names without `asl_`."""

    budget: Budget | None = None
    policy: Policy = field(default_factory=lambda: make_policy("asl"))
    decode_ctx: int | None = None
    """KV cells of the decode context; None: the budget at n_ctx, and room"""
    room: int = 1024
    """KV cells beside the budget, for the answer and later turns, unless decode_ctx says otherwise"""
    dequant: str = "auto"
    progress: Progress | None = None

    @classmethod
    def parse(cls, asl_budget: float | int | None, options: dict[str, Any]) -> AslOptions:
        """Checks values and names.

        Raises:
            OptionError: an unknown `asl_*` name, or a value outside its domain.
        """
        known = {"asl_policy", "asl_decode_ctx", "asl_dequant", "asl_progress", "asl_min_prompt", "asl_room"}
        if unknown := sorted(set(options) - known):
            raise OptionError(
                f"{unknown[0]}: expected one of asl_budget, {', '.join(sorted(known))}, got an unknown option"
            )
        min_prompt = options.get("asl_min_prompt", Budget.min_prompt)
        budget = None if asl_budget is None else Budget(asl_budget, min_prompt)
        policy = make_policy(options.get("asl_policy", "asl"))
        if budget is not None and not isinstance(policy, Full):
            budget.check(policy.min_kept)
        decode_ctx = options.get("asl_decode_ctx")
        return cls(
            budget=budget,
            policy=policy,
            decode_ctx=None if decode_ctx is None else _cells("asl_decode_ctx", decode_ctx),
            room=_cells("asl_room", options.get("asl_room", cls.room)),
            dequant=_dequant(options.get("asl_dequant", "auto")),
            progress=_progress(options.get("asl_progress")),
        )

    def to_kwargs(self) -> dict[str, Any]:
        """The keyword arguments that make these options again."""
        assert self.budget is not None
        return {
            "asl_budget": self.budget.value,
            "asl_min_prompt": self.budget.min_prompt,
            "asl_policy": self.policy,
            "asl_decode_ctx": self.decode_ctx,
            "asl_room": self.room,
            "asl_dequant": self.dequant,
            "asl_progress": self.progress,
        }


def _cells(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}: expected a number of KV cells, at least 1, got {value!r}")
    return value


def _dequant(value: object) -> str:
    mode = {True: "auto", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if not isinstance(mode, str) or mode not in DEQUANT_MODES:
        raise OptionError(f"asl_dequant: expected a bool or one of {', '.join(DEQUANT_MODES)}, got {value!r}")
    return mode


def _progress(value: Any) -> Progress | None:
    if value is not None and not callable(value):
        raise OptionError(f"asl_progress: expected a callable (done, total) -> bool or None, got {value!r}")
    return value
