"""Where the cells of a conversation are: a context of its own, or one sequence of a context that others use as well."""

from __future__ import annotations

from typing import Any

from ..native import context
from ..native.bindings import llama_cpp, session_info
from ..native.session import Session


class OwnContext:
    """A context with one sequence. Prompts are prefilled straight into its cells.

    Args:
        ctx: a `llama_context *`; it outlives this object.
        session: on it.
    """

    def __init__(self, ctx: Any, session: Session) -> None:
        self.ctx = ctx
        self._session = session

    @property
    def n_cells(self) -> int:
        """KV cells."""
        return int(llama_cpp.llama_n_ctx(self.ctx))

    @property
    def n_used(self) -> int:
        """Of these, cells that hold a token."""
        return int(self._session.info().n_cells_used)

    def info(self) -> session_info:
        """Sizes, see `asl_session_info`."""
        return self._session.info()

    @property
    def n_evaluated(self) -> int:
        """Where the next token goes."""
        return context.n_evaluated(self.ctx)

    @property
    def takes_turns(self) -> bool:
        """Whether new tokens can run layer by layer over what the cells hold."""
        return self._session.takes_turns and not any(context.first_cells(self.ctx))

    def remove_from(self, begin: int) -> None:
        """Frees the cells from this position on."""
        context.remove_from(self.ctx, begin)

    def open(self, n_rows: int) -> Session:
        """A session for a prompt that keeps n_rows."""
        return self._session

    def open_turn(self, n_rows: int) -> Session:
        """The same for a turn over what the cells hold."""
        return self._session

    def arrive(self) -> None:
        """A prefill has ended: its cells are here."""

    def leave(self) -> None:
        """A prefill was given up."""
