"""What `auto` goes by on a model, as `asl-gguf calibrate` found and calibration.py stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..policies import Policy
from ..policies.cut import Cut
from ..policies.parameters import is_number, require_int


@dataclass(frozen=True)
class FoundCut:
    """A cut, and what it did on prompts that it was not chosen on."""

    cut: Cut
    nll_loss: float
    """nats per token more than with the upper limit for every prompt"""
    kept: float
    """mean share of a prompt that was kept"""
    limit: float
    """the upper limit"""
    prompts: int


@dataclass(frozen=True)
class StoredCut:
    """A cut of a model under a policy."""

    found: FoundCut
    settings: dict[str, Any]
    """all parameters of the policy: other ones select at other layers, and lose other prompts"""
    version: str
    """of this package"""

    @classmethod
    def of(cls, found: FoundCut, policy: Policy, version: str) -> StoredCut:
        return cls(found, asdict(policy), version)

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> StoredCut:
        """Raises ValueError, LookupError or TypeError for what was not written by us."""
        given = entry["found"]
        found = FoundCut(**(given | {"cut": Cut(**given["cut"])}))
        for name in ("nll_loss", "kept", "limit"):
            if not is_number(getattr(found, name)):
                raise TypeError(f"{name} {getattr(found, name)!r:.80}")
        require_int(found.prompts, "prompts", 1)
        if not isinstance(entry["settings"], dict) or not isinstance(entry["version"], str):
            raise TypeError("settings or version of a cut")
        return cls(found, entry["settings"], entry["version"])
