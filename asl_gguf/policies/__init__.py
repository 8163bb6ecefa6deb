"""Policies by name. A new one is one file and one entry here (docs/POLICIES.md)."""

from __future__ import annotations

from ..errors import OptionError
from .asl import ASL, PublishedASL
from .base import Observer, Policy
from .none import Full
from .scoring import ScoringPolicy
from .snapkv import SnapKV

REGISTRY: dict[str, type[Policy]] = {
    "asl": ASL,
    "asl-published": PublishedASL,
    "snapkv": SnapKV,
    "none": Full,
}


def make_policy(policy: str | Policy) -> Policy:
    """A policy from its name; an object of the user's own is returned as it is.

    Raises:
        OptionError: the name is unknown, or the object is no Policy.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str) or policy not in REGISTRY:
        raise OptionError(f"policy: expected one of {', '.join(REGISTRY)} or a Policy object, got {policy!r}")
    return REGISTRY[policy]()


__all__ = ["ASL", "REGISTRY", "Full", "Observer", "Policy", "PublishedASL", "ScoringPolicy", "SnapKV", "make_policy"]
