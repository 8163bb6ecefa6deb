"""What policies share that run the prompt up to one layer, and the tokens that they choose again from layer 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .contract import Policy
from .parameters import require, require_int, require_share, scaled_layer


@dataclass(frozen=True)
class RerunPolicy(Policy):
    """No layer keeps rows in the first pass. The second is a prompt of its own; its positions are consecutive and end where the
    prompt's end, which for rotary positions is the same as beginning at 0."""

    two_pass: ClassVar[bool] = True

    select_layer: int | None = None
    """the layer after which tokens are chosen; None: select_depth of the model's layers"""
    select_depth: float = 0.5
    """share of the layers below it"""
    kernel_size: int = 5
    """width of the average pooling over neighbouring tokens, odd"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self.kernel_size, "kernel_size", 1)
        require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        if self.select_layer is not None:
            require_int(self.select_layer, "select_layer", 0)
        require_share(self.select_depth, "select_depth")

    def layer_of(self, n_layer: int) -> int:
        """The layer after which tokens are chosen."""
        layer = self.select_layer if self.select_layer is not None else scaled_layer(self.select_depth, n_layer)
        return min(layer, n_layer - 1)

    def first_selection(self, n_layer: int) -> int | None:
        return self.layer_of(n_layer)

    def needs_scores(self, layer: int, n_layer: int) -> bool:
        return self.needs_keys(layer, n_layer)

    def keeps_rows(self, layer: int, n_layer: int) -> bool:
        return False
