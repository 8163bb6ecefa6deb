"""`asl_session` as a Python object: arrays in, arrays out, statuses as exceptions."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import OptionError, UnsupportedModelError
from ..policies.contract import Floats, Indices
from . import bindings
from .arrays import float_p, indices, int32_p, require_int32
from .bindings import check, lib, llama_cpp
from .dequant import DEQUANT_MODES
from .signals import handled_after

Progress = Callable[[int, int], bool | None]
"""(done, total) in token-layers; returning False cancels"""


def unsupported_reason(model: int) -> str | None:
    """Why models of this architecture cannot be prefilled layer by layer; None if they can.

    Args:
        model: a `llama_model *`.
    """
    reason = ctypes.create_string_buffer(256)
    status = lib.model_check(model, reason, len(reason))
    return None if status == bindings.OK else reason.value.decode("utf-8", "replace")


def sliding_layers(model: int) -> tuple[bool, ...]:
    """For each layer, whether no policy is asked what to keep of it: it attends to a sliding window of the newest tokens,
    holds a recurrent state, or attends to K/V of an earlier layer or not at all.

    Args:
        model: a `llama_model *`.
    """
    flags = (ctypes.c_bool * llama_cpp.llama_model_n_layer(model))()
    lib.model_get_sliding(model, flags)
    return tuple(flags)


class Session:
    """Prefills prompts layer by layer for one decode context. The calls are those of native/include/asl.h.

    Args:
        context: a `llama_context *`, which must outlive the session.
        params: what the context was created with.
        n_ctx: longest prompt + answer in tokens.

    Raises:
        UnsupportedModelError: the model or the context cannot be prefilled layer by layer.
    """

    def __init__(self, context: int, params: llama_cpp.llama_context_params, n_ctx: int) -> None:
        error = ctypes.create_string_buffer(256)
        self._params = params
        self._pointer: int | None = lib.session_init(context, ctypes.byref(params), n_ctx, error, len(error))
        self._progress = bindings.progress_callback()  # NULL
        self._expected: tuple[int, int] | None = None  # tokens of the layers after this one
        self._raised: BaseException | None = None
        self._interrupted = False
        if not self._pointer:
            raise UnsupportedModelError(error.value.decode("utf-8", "replace"))
        self.set_progress(None)  # Ctrl-C ends a call by way of this callback
        model = llama_cpp.llama_get_model(context)
        self.sliding = sliding_layers(model)
        """of each layer, whether it keeps what it remembers by itself: a sliding window, beyond which its scores rank
        nothing, a recurrent state, or K/V of an earlier layer"""
        self.drops_tokens = bool(lib.model_can_drop_tokens(model))
        """whether deeper layers may run over fewer tokens"""
        self.state_bytes = int(lib.context_state_bytes(context))
        """of recurrent states, whatever the length of the prompt"""
        self.has_indexer = bool(lib.context_has_indexer(context))
        """whether `rank_by` takes the indexer"""

    @property
    def _handle(self) -> int:
        if not self._pointer:
            raise OptionError("expected an open session, got one that was closed; make a new one")
        return self._pointer

    def close(self) -> None:
        """Frees the session; before the context is freed. A closed session cannot be used again."""
        if self._pointer:
            lib.session_free(self._pointer)
            self._pointer = None

    def __del__(self) -> None:
        # the interpreter may be shutting down, with this module half gone
        if getattr(self, "_pointer", None) and lib is not None:
            self.close()

    def set_progress(self, progress: Progress | None) -> None:
        """Calls `progress` between chunks (`expect` corrects totals). What it raises cancels the prefill."""

        def report(_user_data: int, done: int, total: int) -> bool:
            try:
                goes_on = progress is None or progress(done, total + self._expected_more()) is not False
                return goes_on and not self._interrupted
            except BaseException as err:  # KeyboardInterrupt too: ctypes would print and drop it
                self._raised = err
                return False

        self._progress = bindings.progress_callback(report)
        self._check(lib.session_set_progress(self._handle, self._progress, None))

    def expect(self, n_kept: int, layer: int) -> None:
        """Until tokens are dropped, progress counts n_kept of them in the layers after this one."""
        self._expected = n_kept, layer

    def _expected_more(self) -> int:
        """Token-layers to add to the native total, which knows of no policy."""
        if self._expected is None:
            return 0
        n_kept, layer = self._expected
        info = bindings.session_info()
        if lib.session_get_info(self._pointer, ctypes.byref(info)) != bindings.OK:
            return 0
        n_left = info.n_layer - 1 - max(layer, info.next_layer)
        return (n_kept - (info.n_current - info.n_past)) * max(0, n_left)

    def set_dequant(self, mode: str) -> None:
        """How weights are held while their layer runs (CPUs); all but 'off' compute attention with our own kernel, too."""
        if mode not in DEQUANT_MODES:
            raise OptionError(f"asl_dequant: expected one of {', '.join(DEQUANT_MODES)}, got {mode!r}")
        self._check(lib.session_set_dequant(self._handle, DEQUANT_MODES[mode]))

    @property
    def chunks(self) -> dict[str, int]:
        """n_batch and n_ubatch of prefills."""
        return {"n_batch": self._params.n_batch, "n_ubatch": self._params.n_ubatch}

    @property
    def kv_types(self) -> tuple[int, int]:
        """ggml types of K and V in the cache."""
        return self._params.type_k, self._params.type_v

    def info(self) -> bindings.session_info:
        """Sizes and progress, see `asl_session_info`."""
        info = bindings.session_info()
        self._check(lib.session_get_info(self._handle, ctypes.byref(info)))
        return info

    def begin(self, tokens: Sequence[int], window: int, first_pos: int = 0) -> None:
        """Starts a prefill at position first_pos; what the decode context held is forgotten."""
        ids = indices("tokens", tokens, (1,))
        self._expected = None
        self._check(lib.session_begin(self._handle, int32_p(ids), ids.size, window, first_pos))

    def extend(self, tokens: Sequence[int], window: int) -> None:
        """Starts a prefill of tokens that follow what the decode context holds, its past, pruned or not.

        The past's cells come first among the current tokens (`info().n_past` of them) and are all kept, rows and
        tokens. Until the prefill ends the decode context stays as it is; `abort` leaves it so.
        """
        ids = indices("tokens", tokens, (1,))
        self._expected = None
        self._check(lib.session_extend(self._handle, int32_p(ids), ids.size, window))

    def set_window(self, window: int, weights: Floats | None = None) -> None:
        """Scores of layers that run from now on come from the last `window` tokens.

        Args:
            weights: float32 [window], factors on each query's attention; None: 1.
        """
        factors = None if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
        if factors is not None and factors.shape != (window,):
            raise OptionError(f"weights: expected shape [{window}], got {list(factors.shape)}")
        self._check(lib.session_set_window(self._handle, window, None if factors is None else float_p(factors)))

    def rank_by(self, ranks_by: str) -> None:
        """What `scores` tells from now on, in all prefills: "attention" of the window, or what an "indexer" makes of it.

        Raises:
            OptionError: the model's layers have no indexer.
        """
        self._check(lib.session_rank_by(self._handle, ranks_by == "indexer"))

    def set_past(self, n_past: int) -> None:
        """The first n_past tokens are not computed: before each layer runs, `load_rows` gives their K/V, and `load_state` the
        recurrent state after them.

        Tokens cannot be dropped then, and all layers have to run, one by one.
        """
        require_int32("n_past", n_past)
        self._check(lib.session_set_past(self._handle, n_past))

    def row_bytes(self, layer: int) -> int:
        """Bytes of one token's K/V in a layer; 0 without K/V of its own."""
        return self._bytes_of(lib.session_row_bytes, layer)

    def key_bytes(self, layer: int) -> int:
        """Of these, bytes of K: they come first. Keys of an indexer stand in V's place where V is a part of K."""
        return self._bytes_of(lib.session_key_bytes, layer)

    def save_rows(self, begin: int, end: int) -> np.ndarray:
        """uint8 [end - begin, row bytes]: K/V of these tokens in the layer that ran last, for `load_rows`."""
        info = self.info()
        n_row = self.row_bytes(max(0, info.next_layer - 1))
        if not 0 <= begin < end <= info.n_current:
            raise OptionError(f"expected tokens between 0 and {info.n_current}, got {begin} to {end}")
        result = np.empty((end - begin, n_row), dtype=np.uint8)
        self._check(lib.session_save_rows(self._handle, begin, end, result.ctypes.data, result.nbytes))
        return result

    def load_rows(self, rows: np.ndarray) -> None:
        """K/V of the first n_past tokens in the layer that runs next.

        Args:
            rows: uint8 [n_past, row bytes], as from `save_rows` for the same first tokens.
        """
        info = self.info()
        n_row = self.row_bytes(min(info.next_layer, info.n_layer - 1))
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != n_row:
            raise OptionError(f"rows: expected uint8 [n_past, {n_row}], got {rows.dtype} {list(rows.shape)}")
        data = np.ascontiguousarray(rows)
        self._check(lib.session_load_rows(self._handle, data.ctypes.data, data.nbytes))

    def state_size(self, layer: int) -> int:
        """Bytes of the recurrent state of a layer; 0 if it holds none."""
        return self._bytes_of(lib.session_state_bytes, layer)

    def set_state_ends(self, ends: Sequence[int]) -> None:
        """Chunks end after so many tokens too in the layers that run from now on, and states are noted there."""
        values = np.array(ends, dtype=np.int32)
        self._check(lib.session_set_state_ends(self._handle, int32_p(values), values.size))

    def save_state(self, n_tokens: int) -> np.ndarray:
        """uint8: the recurrent state of the layer that ran last after so many tokens: all, or a number of `set_state_ends`."""
        result = np.empty(self.state_size(max(0, self.info().next_layer - 1)), dtype=np.uint8)
        self._check(lib.session_save_state(self._handle, n_tokens, result.ctypes.data, result.nbytes))
        return result

    def load_state(self, state: np.ndarray) -> None:
        """The recurrent state after the first n_past tokens of the layer that runs next, as from `save_state`."""
        if state.dtype != np.uint8 or state.ndim != 1:
            raise OptionError(f"state: expected uint8 [n], got {state.dtype} {list(state.shape)}")
        data = np.ascontiguousarray(state)
        self._check(lib.session_load_state(self._handle, data.ctypes.data, data.nbytes))

    def save_hidden(self, begin: int, end: int) -> Floats:
        """float32 [end - begin, n_hidden]: output of the layer that ran last, not the model's last, for `load_hidden`."""
        result = np.empty((max(0, end - begin), self.info().n_hidden), dtype=np.float32)
        self._check(lib.session_save_hidden(self._handle, begin, end, float_p(result), result.nbytes))
        return result

    def load_hidden(self, hidden: Floats) -> None:
        """Output of the layer that ran last for the first n_past tokens, which are like all others from then on.

        Args:
            hidden: float32 [n_past, n_hidden], as from `save_hidden` for the same first tokens.
        """
        if hidden.dtype != np.float32 or hidden.ndim != 2 or hidden.shape[1] != self.info().n_hidden:
            raise OptionError(
                f"hidden: expected float32 [n_past, {self.info().n_hidden}], got {hidden.dtype} {list(hidden.shape)}"
            )
        data = np.ascontiguousarray(hidden)
        self._check(lib.session_load_hidden(self._handle, float_p(data), data.nbytes))

    def run(self, n_layers: int, with_scores: bool) -> None:
        """Runs the next layers over the current tokens; the last of them has scores."""
        with self._interruptible():
            self._check(lib.session_run(self._handle, n_layers, with_scores))

    def start(self, n_layers: int, with_scores: bool) -> None:
        """What `run` does, in slices: call `step` until it returns False."""
        self._check(lib.session_start(self._handle, n_layers, with_scores))

    def start_finish(self) -> None:
        """What `finish` does, in slices: call `step` until it returns False."""
        self._check(lib.session_start_finish(self._handle))

    def step(self) -> bool:
        """Runs one slice: at most one chunk of one layer, or the output head. Returns whether slices are left."""
        more = ctypes.c_bool()
        with self._interruptible():
            self._check(lib.session_step(self._handle, ctypes.byref(more)))
        return more.value

    def running(self, n_layers: int, with_scores: bool) -> Iterator[None]:
        """`run` in slices: yields after each, at most one chunk of one layer."""
        self.start(n_layers, with_scores)
        more = True
        while more:
            more = self.step()
            yield

    def finishing(self) -> Iterator[None]:
        """`finish` in slices: a chunk of a layer each, the output head by itself at the end."""
        self.start_finish()
        more = True
        while more:
            more = self.step()
            yield

    def _interruptible(self) -> contextlib.AbstractContextManager[None]:
        """For the time of a native call, which Ctrl-C ends early."""

        def interrupted(now: bool) -> None:
            self._interrupted = now

        return handled_after(interrupted)

    def scores(self) -> Floats:
        """float32 [n_head_kv, n_current]: the window's attention in the layer that ran last."""
        info = self.info()
        result = np.empty((info.n_head_kv, info.n_current), dtype=np.float32)
        self._check(lib.session_get_scores(self._handle, float_p(result)))
        return result

    def queries(self) -> Floats:
        """float32 [n_window, n_head, n_embd_head_k]: the window's queries in the layer that ran last."""
        info = self.info()
        result = np.empty((info.n_window, info.n_head, info.n_embd_head_k), dtype=np.float32)
        self._check(lib.session_get_queries(self._handle, float_p(result)))
        return result

    def keys(self) -> Floats:
        """float32 [n_current, n_head_kv, n_embd_head_k]: the keys of the layer that ran last."""
        info = self.info()
        result = np.empty((info.n_current, info.n_head_kv, info.n_embd_head_k), dtype=np.float32)
        self._check(lib.session_get_keys(self._handle, float_p(result)))
        return result

    def keep_rows(self, index: Indices | None) -> int:
        """Copies K/V rows of the layer that ran last into the decode context.

        Args:
            index: int32 [k], or [n_head_kv, k]; None for all current tokens.

        Returns:
            k
        """
        info = self.info()
        if index is None:
            self._check(lib.session_keep_rows(self._handle, None, info.n_current, False))
            return info.n_current
        rows = indices("rows", index, (1, 2))
        if rows.ndim == 2 and rows.shape[0] != info.n_head_kv:
            raise OptionError(f"rows: expected shape [k] or [{info.n_head_kv}, k], got {list(rows.shape)}")
        self._check(lib.session_keep_rows(self._handle, int32_p(rows), rows.shape[-1], rows.ndim == 2))
        return rows.shape[-1]

    def shrink_rows(self, layer: int, index: Indices) -> None:
        """Drops kept rows of a layer but for these: int32 [k], or [n_head_kv, k]. Called for every layer, in order."""
        rows = indices("rows", index, (1, 2))
        self._check(lib.session_shrink_rows(self._handle, layer, int32_p(rows), rows.shape[-1], rows.ndim == 2))

    def keep_tokens(self, index: Indices) -> None:
        """Deeper layers see only these tokens, int32 [k]."""
        kept = indices("tokens", index, (1,))
        self._expected = None
        self._check(lib.session_keep_tokens(self._handle, int32_p(kept), kept.size))

    def save_layer(self) -> np.ndarray:
        """uint8: K/V and output of the layer that ran last, for `load_layer`."""
        layer = max(0, self.info().next_layer - 1)
        result = np.empty(self._layer_bytes(layer), dtype=np.uint8)
        self._check(lib.session_save_layer(self._handle, result.ctypes.data, result.size))
        return result

    def load_layer(self, layer: int, saved: np.ndarray) -> None:
        """Takes a layer from bytes that `save_layer` returned for the same tokens, in place of running it.

        The prefill goes on after this layer. Layers that were jumped over have kept no rows.
        """
        if saved.dtype != np.uint8 or saved.ndim != 1:
            raise OptionError(f"saved: expected bytes (uint8 [n]), got {saved.dtype} {list(saved.shape)}")
        data = np.ascontiguousarray(saved)
        self._check(lib.session_load_layer(self._handle, layer, data.ctypes.data, data.size))

    def _layer_bytes(self, layer: int) -> int:
        return self._bytes_of(lib.session_layer_bytes, layer)

    def _bytes_of(self, size: Callable[..., int], layer: int) -> int:
        n_bytes = ctypes.c_int64()
        self._check(size(self._handle, layer, ctypes.byref(n_bytes)))
        return n_bytes.value

    def finish(self) -> None:
        """Runs what remains into the decode context; the last token's logits are available there."""
        with self._interruptible():
            self._check(lib.session_finish(self._handle))

    def abort(self) -> None:
        """Ends an open prefill; the decode context is left empty. A closed session has none."""
        if not self._pointer:
            return
        self._check(lib.session_abort(self._handle))

    def _check(self, status: int) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        check(status, self._handle)
