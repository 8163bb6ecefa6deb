"""The `asl_*` keyword arguments of `Llama`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..budget.auto import AutoRule
from ..budget.latency import LatencyRule
from ..budget.memory import MemoryRule
from ..budget.rule import BudgetContext, BudgetRule, ShareRule
from ..budget.share import ROOM, Budget
from ..budget.targets import Auto, BudgetValue, Target, check_budget, make_budget
from ..cache import packing
from ..errors import OptionError, shown
from ..models.calibration import calibrated, cut_of
from ..native.bindings import llama_cpp
from ..native.dequant import DEQUANT_MODES
from ..native.session import Progress
from ..policies import DEFAULT, Policy, make_policy
from ..policies.cut import Cut
from ..policies.protect import Protection

_DECIDING = ("asl_budget", "asl_min_prompt", "asl_policy", "asl_protect", "asl_guard", "asl_full_kv", "asl_dequant")


def _own(value: Any) -> Any:
    """A number of NumPy's, such as a mean length, as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class AslOptions:
    """Options of one `Llama`, under their names without `asl_`."""

    budget: Budget | Auto | Target | None = None
    policy: Policy = field(default_factory=lambda: make_policy(DEFAULT))
    decode_ctx: int | None = None
    """KV cells of the decode context; None: the budget at n_ctx, and room"""
    room: int = ROOM
    """KV cells beside the budget, for the answer and later turns, unless decode_ctx says otherwise"""
    dequant: str = "auto"
    progress: Progress | bool | None = None
    """True: a bar"""
    protect: Protection = field(default_factory=Protection)
    guard: float | None = None
    use_calibration: bool = True
    """take min_layer and tau from a stored calibration, where the policy was given by name and they were not"""
    given_policy: str | Policy = DEFAULT
    """the policy as it was given"""
    full_kv: bool | str = False
    """keep K/V of all tokens of the last prompt on the host; a str: quantised to this type"""
    calibration: str | None = None
    """the calibration that the policy's parameters come from, for the report"""
    cut: Cut | None = None
    """what `auto` goes by, from such a calibration"""

    @classmethod
    def parse(cls, asl_budget: BudgetValue | None, options: dict[str, Any]) -> AslOptions:
        """Checks values and names.

        Raises:
            OptionError: an unknown `asl_*` name, or a value outside its domain.
        """
        known = {"asl_policy", "asl_decode_ctx", "asl_dequant", "asl_progress", "asl_min_prompt", "asl_room"}
        known |= {"asl_protect", "asl_guard", "asl_calibration", "asl_full_kv"}
        if unknown := sorted(set(options) - known):
            raise OptionError(
                f"{unknown[0]}: expected one of asl_budget, {', '.join(sorted(known))}, got an unknown option"
            )
        asl_budget, options = _own(asl_budget), {name: _own(value) for name, value in options.items()}
        min_prompt = options.get("asl_min_prompt", Budget.min_prompt)
        budget = None if asl_budget is None else make_budget(asl_budget, min_prompt)
        policy = make_policy(options.get("asl_policy", DEFAULT))
        if budget is not None:
            check_budget(budget, policy)
        decode_ctx = options.get("asl_decode_ctx")
        return cls(
            budget=budget,
            policy=policy,
            decode_ctx=None if decode_ctx is None else _cells("asl_decode_ctx", decode_ctx),
            room=_cells("asl_room", options.get("asl_room", cls.room)),
            dequant=_dequant(options.get("asl_dequant", "auto")),
            progress=check_progress(options.get("asl_progress")),
            protect=Protection.parse(options.get("asl_protect")),
            guard=_guard(options.get("asl_guard"), policy),
            use_calibration=_flag("asl_calibration", options.get("asl_calibration", True)),
            full_kv=_full_kv(options.get("asl_full_kv", False), budget),
            given_policy=options.get("asl_policy", DEFAULT),
        )

    def calibrate(self, model_path: str) -> AslOptions:
        """These options, with what `asl-gguf calibrate` stored for this model file and policy, if anything."""
        policy, found = calibrated(self.given_policy, model_path, enabled=self.use_calibration)
        cut = cut_of(policy, model_path, enabled=self.use_calibration) if isinstance(self.budget, Auto) else None
        return replace(self, policy=policy, calibration=found.summary if found else None, cut=cut)

    def rule(self, path: str, n_ctx: int, kwargs: Mapping[str, Any]) -> BudgetRule:
        """What decides how many tokens of a prompt are kept, for this model and context.

        Args:
            path: GGUF file.
            n_ctx: longest prompt + answer in tokens.
            kwargs: of llama_cpp.Llama.

        Raises:
            OptionError: the budget cannot be met.
            ModelError: the file is no readable GGUF.
        """
        assert self.budget is not None
        use = BudgetContext(
            path, n_ctx, self.policy, self.room, self.decode_ctx, self.guard is not None, kwargs, self.cut
        )
        if isinstance(self.budget, Budget):
            return ShareRule(self.budget, use)
        if isinstance(self.budget, Auto):
            return AutoRule.make(self.budget, use)
        return (MemoryRule if self.budget.kind == "fit" else LatencyRule).make(self.budget, use)

    def deciding_what_is_kept(self) -> dict[str, Any]:
        """The options that a pruned state depends on, under their own names."""
        kwargs = self.to_kwargs()
        return {name: kwargs[name] for name in _DECIDING}

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
            "asl_protect": self.protect.to_list(),
            "asl_guard": self.guard,
            "asl_calibration": self.use_calibration,
            "asl_full_kv": self.full_kv,
        }


def _cells(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise OptionError(f"{name}: expected a number of KV cells below 2**31, at least 1, got {shown(value)}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name}: expected True or False, got {shown(value)}")
    return value


def _full_kv(value: object, budget: Budget | Auto | Target | None) -> bool | str:
    """Without a budget there is no other selection to make; a time cannot be predicted."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value in packing.KINDS):
        raise OptionError(f"asl_full_kv: expected True, False or one of {', '.join(packing.KINDS)}, got {shown(value)}")
    if value and budget is None:
        raise OptionError(
            "asl_full_kv: expected asl_budget with it, got None, which keeps the K/V of all tokens in the context "
            "anyway; pass asl_budget, or leave asl_full_kv out"
        )
    if value and isinstance(budget, Target) and budget.kind == "ttft":
        raise OptionError(
            f"asl_full_kv: expected a budget in tokens, a share or memory with it, got {budget.value}: how long "
            "a prefill takes depends on what it shares with the last prompt, which predictions do not know; choose one of "
            "the two"
        )
    return value


def _dequant(value: object) -> str:
    mode = {True: "auto", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if not isinstance(mode, str) or mode not in DEQUANT_MODES:
        raise OptionError(f"asl_dequant: expected a bool or one of {', '.join(DEQUANT_MODES)}, got {shown(value)}")
    return mode


def _guard(value: Any, policy: Policy) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise OptionError(f"asl_guard: expected a share of the attention in (0, 1], or None, got {shown(value)}")
    if policy.drops and (policy.two_pass or not policy.scores_kept_rows):
        raise OptionError(
            f"asl_guard: expected a policy that keeps rows by their attention, got {policy.name}; pass asl-span, asl, "
            "fastkv, snapkv or pyramidinfer, or leave asl_guard out"
        )
    return value


def check_progress(value: Any) -> Progress | bool | None:
    """The value. Raises OptionError for none of these."""
    if value is not None and not isinstance(value, bool) and not callable(value):
        raise OptionError(
            f"asl_progress: expected a callable (done, total) -> bool, True for a bar, or None, got {shown(value)}"
        )
    return value


def unprunable_use(kwargs: dict[str, Any]) -> str | None:
    """Why this use of a model needs the full cache, None if it does not."""
    if kwargs.get("attention_type") == llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL:
        return "attention that is not causal needs every token in every layer (attention_type)"
    for name, reason in {
        "logits_all": "logits_all needs the logits of every prompt token, and logprobs of an answer need no logits_all",
        "embedding": "embeddings need every prompt token",
        "vocab_only": "the model is loaded without weights",
        "draft_model": "speculative decoding with a draft model needs the logits of every token",
    }.items():
        if kwargs.get(name):
            return f"{reason} ({name})"
    return None
