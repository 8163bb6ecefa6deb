"""Where the cells of a conversation are: a context of its own, or one sequence of a context that others use as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..budget.share import round_cells
from ..errors import OutOfMemoryError
from ..native import context, moving
from ..native.bindings import lib, llama_cpp, session_info
from ..native.session import Progress, Session


class Place(Protocol):
    """The cells of one conversation."""

    ctx: Any
    """the `llama_context *` that decodes it"""

    @property
    def n_cells(self) -> int:
        """KV cells that it may take."""

    @property
    def n_used(self) -> int:
        """Cells of the sequence that hold a token."""

    @property
    def n_evaluated(self) -> int:
        """Where the next token goes."""

    @property
    def takes_turns(self) -> bool:
        """Whether new tokens can run layer by layer over what the cells hold."""

    def info(self) -> session_info:
        """Sizes, see `asl_session_info`."""

    def remove_from(self, begin: int) -> bool:
        """Frees the cells from this position on. Returns whether it could: recurrent states do not go back."""

    def sees_back(self, n_tokens: int) -> bool:
        """Whether a token after the first n_tokens, none of them pruned, finds all that it attends to."""

    def clear(self) -> None:
        """Nothing that the cells hold is needed any more."""

    def open(self, n_rows: int) -> Session:
        """A session for a prompt that keeps n_rows."""

    def open_turn(self, n_rows: int) -> Session:
        """The same for a turn over what the cells hold."""

    def arrive(self) -> None:
        """A prefill has ended: its cells are to be the conversation's."""

    def leave(self) -> None:
        """A prefill was given up, or measured only."""


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
        """Cells of the sequence that hold a token."""
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
        return not any(context.first_cells(self.ctx)) and not lib.model_has_alibi(llama_cpp.llama_get_model(self.ctx))

    def remove_from(self, begin: int) -> bool:
        """Frees the cells from this position on. Returns whether it could: recurrent states do not go back."""
        return context.remove_from(self.ctx, begin)

    def sees_back(self, n_tokens: int) -> bool:
        """Whether a token after the first n_tokens, none of them pruned, finds all that it attends to."""
        return context.sees_back(self.ctx, n_tokens)

    def clear(self) -> None:
        """Cells are freed once others are needed."""

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


class SharedContext:
    """One sequence of a context in which others live and decode meanwhile.

    A prompt is prefilled in a private context of as many cells as it keeps, which then move into the sequence. Between two
    slices of it the shared context is free for anyone.

    Args:
        ctx: a `llama_context *` with unified KV or one stream a sequence; it outlives this object.
        seq_id: the sequence.
        params: what ctx was created with.
        n_ctx: longest prompt + answer of the sequence in tokens.
        dequant: as `Session.set_dequant` takes it.
        progress: as `Session.set_progress` takes it.
    """

    def __init__(
        self,
        ctx: Any,
        seq_id: int,
        params: llama_cpp.llama_context_params,
        n_ctx: int,
        *,
        dequant: str = "off",
        progress: Progress | None = None,
    ) -> None:
        self.ctx = ctx
        self.seq_id = seq_id
        self.params = params
        """what the context was created with"""
        self._n_ctx = n_ctx
        self._dequant, self._progress = dequant, progress
        self._private: Any = None
        self._session: Session | None = None
        self._n_dropped = 0  # evaluated tokens that have no cell
        self._n_turn = -1  # cells that the turn found; -1: no turn runs
        self.n_chunk = self.n_chunk_most = int(params.n_ubatch)
        """tokens of a chunk: what fits into a slice, at most n_ubatch"""
        self.adapters: Sequence[tuple[int, float]] = ()
        """LoRA adapters that prompts run with (`llama_adapter_lora *`), and their scales"""
        self._sizes = self._sizes_without_session()

    @property
    def n_cells(self) -> int:
        """KV cells that the sequence may take: its own and the free ones."""
        return self.n_used + moving.free_cells(self.ctx, self.seq_id)

    @property
    def n_used(self) -> int:
        """Cells of the sequence that hold a token."""
        return max(0, self.n_evaluated - self._n_dropped)

    def info(self) -> session_info:
        """Sizes, see `asl_session_info`."""
        sizes = self._session.info() if self._session is not None else self._sizes
        sizes.n_cells, sizes.n_cells_used = self.n_cells, self.n_used
        sizes.kv_bytes_decode = lib.context_kv_bytes(self.ctx)
        return sizes

    @property
    def n_dropped(self) -> int:
        """Evaluated tokens that have no cell."""
        return self._n_dropped

    def adopt(self, n_dropped: int) -> None:
        """Others have put the cells there: a state that was restored or copied, tokens that were decoded.

        Args:
            n_dropped: how many of the evaluated tokens have no cell.
        """
        self._n_dropped = n_dropped

    def _sizes_without_session(self) -> session_info:
        n_layer = llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(self.ctx))
        return session_info(
            n_layer=n_layer, kv_bytes_cell=lib.context_kv_bytes(self.ctx) // llama_cpp.llama_n_ctx(self.ctx)
        )

    @property
    def n_evaluated(self) -> int:
        """Where the next token goes."""
        return context.n_evaluated(self.ctx, self.seq_id)

    @property
    def takes_turns(self) -> bool:
        """Whether new tokens can run layer by layer over what the cells hold."""
        return True

    def remove_from(self, begin: int) -> bool:
        """Frees the cells from this position on. Returns whether it could: recurrent states do not go back."""
        if begin == 0:
            self._n_dropped = 0
        return context.remove_from(self.ctx, begin, self.seq_id)

    def sees_back(self, n_tokens: int) -> bool:
        """Whether a token after the first n_tokens, none of them pruned, finds all that it attends to."""
        return context.sees_back(self.ctx, n_tokens, self.seq_id)

    def clear(self) -> None:
        """Frees all cells."""
        self.remove_from(0)

    def open(self, n_rows: int) -> Session:
        """A session on a private context for a prompt that keeps n_rows.

        Raises:
            OutOfMemoryError: there is no memory for it.
        """
        self.leave()
        params = type(self.params).from_buffer_copy(self.params)
        params.n_ctx, params.n_seq_max, params.kv_unified = round_cells(n_rows + 1), 1, False
        params.n_ubatch = self.n_chunk
        model = llama_cpp.llama_get_model(self.ctx)
        self._private = llama_cpp.llama_init_from_model(model, params)
        if not self._private:
            raise OutOfMemoryError(f"llama.cpp could not create a private context of {params.n_ctx} cells")
        context.set_adapters(self._private, self.adapters)
        params.n_batch, params.n_ubatch = self.params.n_batch, self.n_chunk
        self._session = Session(self._private, params, self._n_ctx)
        self._session.set_dequant(self._dequant)
        self._session.set_progress(self._progress)
        return self._session

    def open_turn(self, n_rows: int) -> Session:
        """The same for a turn over what the cells hold, of which n_rows are kept."""
        n_past = self.n_used
        # of sliding layers, whose window may be longer than what is kept, all that a token sees comes along
        n_swa = int(llama_cpp.llama_model_n_swa(llama_cpp.llama_get_model(self.ctx)))
        n_sliding = min(n_swa + self.n_chunk, self._n_ctx) if n_swa else 0
        session = self.open(max(n_past + n_rows, n_sliding))
        moving.move(self.ctx, self._private, 0, with_logits=False, source_id=self.seq_id)
        self._n_turn = n_past
        return session

    def arrive(self) -> None:
        """A prefill has ended: its cells become the sequence's.

        Raises:
            ContextFullError: others took the cells meanwhile. The prompt is lost; what came before a turn is not.
        """
        assert self._session is not None
        self._sizes = self._session.info()
        n_rows = self._sizes.n_cells_used
        try:
            if self._n_turn >= 0:
                moving.require_cells(self.ctx, self.seq_id, n_rows - self._n_turn)
                context.remove_from(self.ctx, 0, self.seq_id)
            moving.move(self._private, self.ctx, self.seq_id)
            self._n_dropped = self.n_evaluated - n_rows
        finally:
            self.leave()

    def leave(self) -> None:
        """The private context goes."""
        if self._session is not None:
            self._session.close()
        if self._private:
            llama_cpp.llama_free(self._private)
        self._session, self._private, self._n_turn = None, None, -1
