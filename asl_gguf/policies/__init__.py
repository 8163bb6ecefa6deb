"""Policies by name. A new one is one file and one entry here (docs/POLICIES.md)."""

from __future__ import annotations

from ast import literal_eval
from dataclasses import fields, replace
from typing import Any

from ..errors import OptionError, shown
from .asl import ASL, TwoPassASL
from .asl_span import SpanASL
from .contract import Decision, Floats, Indices, LateBudget, LayerScores, Observer, Policy, Prompt
from .fastkv import FastKV
from .gemfilter import GemFilter
from .indexer import Indexer
from .none import Full
from .pyramidinfer import PyramidInfer
from .scoring import ScoringPolicy, SelectingPolicy
from .snapkv import SnapKV
from .specprefill import SpecPrefill
from .streaming_llm import StreamingLLM

DEFAULT = "asl-span"

REGISTRY: dict[str, type[Policy]] = {
    "asl-span": SpanASL,
    "asl": ASL,
    "asl-two-pass": TwoPassASL,
    "fastkv": FastKV,
    "gemfilter": GemFilter,
    "indexer": Indexer,
    "snapkv": SnapKV,
    "specprefill": SpecPrefill,
    "pyramidinfer": PyramidInfer,
    "streaming_llm": StreamingLLM,
    "none": Full,
}


def make_policy(policy: str | Policy) -> Policy:
    """A policy from its name, with or without parameters (parse_policy); an object is returned as it is.

    Raises:
        OptionError: the name or a parameter is unknown, or the object is no Policy.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str) and ":" in policy:
        return parse_policy(policy)
    if not isinstance(policy, str) or policy not in REGISTRY:
        raise OptionError(f"policy: expected one of {', '.join(REGISTRY)} or a Policy object, got {shown(policy)}")
    return REGISTRY[policy]()


def parse_policy(text: str) -> Policy:
    """A policy written as `name` or `name:parameter=value:parameter=value`.

    Raises:
        OptionError: the name, a parameter or a value is none of the policy's.
    """
    name, *settings = text.split(":")
    policy = make_policy(name)
    known = {field.name: field for field in fields(policy)}
    values: dict[str, Any] = {}
    for setting in settings:
        parameter, equals, value = setting.partition("=")
        if not equals or parameter not in known or parameter in values:
            raise OptionError(
                f"policy {name}: expected parameter=value with one of {', '.join(known)}, each at most once, got {shown(setting)}"
            )
        try:
            values[parameter] = literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[parameter] = value
    return replace(policy, **values)


def written_parameters(text: str) -> frozenset[str]:
    """Names of the parameters that are written out in `name:parameter=value:...`."""
    return frozenset(setting.partition("=")[0] for setting in text.split(":")[1:])


__all__ = [
    "ASL",
    "DEFAULT",
    "REGISTRY",
    "Decision",
    "FastKV",
    "Floats",
    "Full",
    "GemFilter",
    "Indexer",
    "Indices",
    "LateBudget",
    "LayerScores",
    "Observer",
    "Policy",
    "Prompt",
    "PyramidInfer",
    "ScoringPolicy",
    "SelectingPolicy",
    "SnapKV",
    "SpanASL",
    "SpecPrefill",
    "StreamingLLM",
    "TwoPassASL",
    "make_policy",
    "parse_policy",
    "written_parameters",
]
