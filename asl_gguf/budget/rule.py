"""How many tokens of each prompt a `Llama` keeps: the contract, and budgets that are a share or a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..native.bindings import session_info
from ..native.session import Session
from ..policies import LateBudget, Policy
from ..policies.cut import Cut
from ..report import PrefillReport
from . import guard
from .late import Shape, fixed_budget
from .share import Budget, round_cells

_UNFINISHED = 3
"""tokens by which llama_cpp exceeds max_tokens to end an answer with a whole character"""


@dataclass(frozen=True)
class BudgetContext:
    """The model, context and policy that tokens are chosen for."""

    path: str
    """GGUF file"""
    n_ctx: int
    """longest prompt + answer in tokens"""
    policy: Policy
    room: int
    """cells for the answer and later turns"""
    decode_ctx: int | None = None
    """cells of the decode context, where the user gave them"""
    guarded: bool = False
    """larger budgets may be tried"""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """of llama_cpp.Llama"""
    cut: Cut | None = None
    """of the model, where `asl-gguf calibrate` found one: for `auto`"""

    @property
    def smallest_cells(self) -> int:
        """Cells without which the policy cannot keep what it must of the longest prompt and leave the room."""
        n_ctx = self.n_ctx
        n_rows = self.policy.max_rows(n_ctx, min(self.policy.min_kept, n_ctx))
        return min(round_cells(n_ctx), round_cells(n_rows + self.room_after(0)))

    def room_after(self, n_tokens: int) -> int:
        """Cells that a prompt must leave: what the answer and later turns may use before n_ctx ends."""
        return max(0, min(self.room + _UNFINISHED, self.n_ctx - n_tokens))

    def most_kept(self, n_tokens: int, n_cells: int) -> int:
        """Most tokens of a prompt whose rows leave room in n_cells; the whole prompt where it does, never fewer than
        the policy's least."""
        n_free = n_cells - self.room_after(n_tokens)
        least = self.policy.min_kept
        if n_tokens <= max(n_free, least):
            return n_tokens
        n_fitting = bisect_right(
            range(least, n_tokens), n_free, key=lambda n_kept: self.policy.max_rows(n_tokens, n_kept)
        )
        return least + max(0, n_fitting - 1)


class BudgetRule(ABC):
    """Chooses for one `Llama`."""

    context: BudgetContext
    fixed: ClassVar[bool] = True
    """`kept` is the number of tokens that are kept, not a limit"""

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """KV cells of the decode context."""

    @abstractmethod
    def kept(self, n_tokens: int) -> int:
        """Tokens to keep of a prompt of n_tokens; all of them if it is not to be pruned."""

    @abstractmethod
    def bind(self, info: session_info) -> None:
        """The model is loaded, with n_cells cells.

        Raises:
            ModelError: it is not what was expected of its file.
        """

    def extends(self, n_new: int, n_held: int) -> bool:
        """True: append a turn of n_new tokens unpruned, after n_held unpruned ones."""
        return self.kept(n_new) == n_new

    def measure(
        self, open_session: Callable[[int], Session], tokens: Sequence[int], begin: Callable[[], None]
    ) -> float:
        """Before a new prompt; `begin` is called first if the decode context is about to lose what it holds.

        Returns:
            the seconds it took
        """
        return 0.0

    def with_protected(self, n_kept: int, n_tokens: int, n_protected: int) -> int:
        """n_kept where so many tokens are protected."""
        return n_kept

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> LateBudget | None:
        """Where it is decided as the prompt is read how many of n_kept tokens stay, or which layer selects them; None: it is
        not.

        Args:
            n_protected: tokens that are kept whatever their scores.
            shape: of the loaded model.
        """
        return None

    def annotate(self, report: PrefillReport) -> PrefillReport:
        """The report of a new prompt, with what was chosen."""
        return report

    def remedy(self, n_cells: int, n_answer: int) -> str:
        """What to do about a prompt and answer that need n_cells cells."""
        return f"pass asl_decode_ctx={round_cells(n_cells)} or more, or lower asl_budget or max_tokens"


@dataclass(frozen=True)
class ShareRule(BudgetRule):
    """A share of each prompt, or a number of tokens."""

    budget: Budget
    context: BudgetContext

    @property
    def n_cells(self) -> int:
        context = self.context
        if context.decode_ctx is not None:
            return round_cells(context.decode_ctx)
        if not context.policy.drops:
            return round_cells(context.n_ctx)
        room = min(context.room, context.n_ctx)
        cells = self.budget.cells(
            context.n_ctx, min(context.policy.min_kept, context.n_ctx), room, context.policy.max_rows
        )
        return min(round_cells(context.n_ctx), guard.CAP * cells) if context.guarded else cells

    def kept(self, n_tokens: int) -> int:
        if not self.context.policy.drops:
            return n_tokens
        return self.budget.kept(n_tokens, self.context.policy.min_kept)

    def bind(self, info: session_info) -> None:
        """Every model will do."""

    def late(self, n_tokens: int, n_kept: int, n_protected: int, shape: Shape) -> LateBudget | None:
        return fixed_budget(self.context.policy, n_tokens, n_kept, shape)

    def with_policy(self, policy: Policy) -> ShareRule:
        """The same under another policy."""
        return replace(self, context=replace(self.context, policy=policy))
