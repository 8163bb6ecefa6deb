"""The functions that llama.cpp's server calls: a translation between C and slots.

All but `check` run on the thread that runs the server. None lets an exception out: ctypes would print and drop it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..budget.rule import BudgetRule
from ..budget.share import round_cells
from ..engine.place import SharedContext
from ..errors import AslError, ContextFullError, OptionError, OutOfMemoryError, PromptError, UnsupportedModelError
from ..models.gguf_header import n_ctx_train
from ..native import context
from ..native.bindings import lib, llama_cpp
from ..native.dequant import set_decoding
from ..native.session import unsupported_reason
from . import bindings
from .answers import Answers
from .hosts import Hosts
from .options import Options
from .pace import Pace, measure
from .rule import RequestOptions, Rules
from .slots import Incoming, Slot
from .totals import Totals

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page.html"

_STATUS = (
    (OutOfMemoryError, bindings.NO_CELLS),
    (ContextFullError, bindings.TOO_LONG),
    (PromptError, bindings.TOO_LONG),
    (OptionError, bindings.INVALID),
)


class Engine:
    """What `asl_serve_set_engine` takes, and the slots behind it.

    Args:
        options: the server's.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._slots: list[Slot] = []
        self._answers, self._totals = Answers(options.answers), Totals()
        self._props: dict[str, Any] = options.to_dict()
        self._pace: Pace | None = None
        kinds: dict[str, Any] = dict(bindings.FIELDS)
        self.struct = bindings.Engine(
            size=kinds["size"](self._size),
            open=kinds["open"](self._open),
            close=kinds["close"](self._close),
            check=kinds["check"](self._check),
            plan=kinds["plan"](self._plan),
            step=kinds["step"](self._step),
            cancel=kinds["cancel"](self._cancel),
            finished=kinds["finished"](self._finished),
            get=kinds["get"](self._get),
            wait_seconds=options.wait,
        )

    def _size(self, _user_data: Any, sizes: Any, text: Any, n_text: int) -> bool:
        def work() -> None:
            wanted = sizes.contents
            path = wanted.model.decode()
            n_ctx = wanted.n_ctx or n_ctx_train(path)
            # as llama_context does
            wanted.n_ctx_slot = round_cells(n_ctx if wanted.unified else max(1, n_ctx // wanted.n_slots))
            wanted.n_cells = self._rule(path, wanted.n_ctx_slot).n_cells

        return _says(work, text, n_text)

    def _rule(self, path: str, n_ctx: int) -> BudgetRule:
        return Rules(self._options, path, n_ctx).server()

    def _open(self, _user_data: Any, ctx: int, params: Any, sizes: Any, text: Any, n_text: int) -> bool:
        def work() -> None:
            if reason := unsupported_reason(llama_cpp.llama_get_model(ctx)):
                raise UnsupportedModelError(reason)
            if lib.model_has_alibi(llama_cpp.llama_get_model(ctx)):
                raise UnsupportedModelError("rows under a bias of distances (ALiBi) cannot move into a slot")
            n_ctx, path = sizes.contents.n_ctx_slot, sizes.contents.model.decode()
            own = type(params.contents).from_buffer_copy(params.contents)
            rules = Rules(self._options, path, n_ctx)
            context.check_ranking(ctx, rules.server().context.policy)

            def place(seq_id: int, progress: Any) -> SharedContext:
                return SharedContext(ctx, seq_id, own, n_ctx, dequant=self._options.dequant, progress=progress)

            set_decoding(ctx, self._options.dequant)
            # raises where no prompt can be prefilled. Chunks stay as long as they were when a server wakes
            self._pace = pace = self._pace or measure(place(0, None))
            model = llama_cpp.llama_get_model(ctx)
            seconds, n_layer = self._options.slice_ms / 1000, llama_cpp.llama_model_n_layer(model)
            sizes.contents.n_slice = pace.n_whole(seconds, n_layer)
            n_slots = sizes.contents.n_slots
            hosts = Hosts.of(self._options.full_kv, place(0, None), n_slots)
            self._slots = [Slot(partial(place, i), rules, self._options, n_ctx, pace, hosts) for i in range(n_slots)]
            self._answers.open(model)
            self._props = {**self._options.to_dict(), **_sizes(sizes.contents, ctx), "calibration": rules.calibration}

        def work_or_end() -> None:
            try:
                work()
            except OptionError:
                sizes.contents.refused = True
                raise

        return _says(work_or_end, text, n_text)

    def _close(self, _user_data: Any) -> None:
        for slot in self._slots:
            slot.cancel()
        self._slots = []
        self._answers.close()
        gc.collect()  # slots refer to themselves, and a server that sleeps runs no Python that would find K/V on the host

    def _check(self, _user_data: Any, options: bytes, text: Any, n_text: int) -> bool:
        return _says(lambda: RequestOptions.parse(options.decode("utf-8", "replace")), text, n_text)

    def _plan(self, _user_data: Any, prompt: Any, answer: Any) -> int:
        def work() -> int:
            slot = self._slots[prompt.contents.slot]
            runs = slot.plan(_incoming(prompt.contents))
            self._describe(slot, prompt.contents.slot, answer.contents, done=not runs)
            return bindings.MORE if runs else bindings.STOCK

        return self._counted(work, answer.contents)

    def _counted(self, work: Callable[[], int], answer: Any) -> int:
        began = time.thread_time()
        status = _status(work, answer)
        self._totals.slice(time.thread_time() - began)
        if status not in (bindings.STOCK, bindings.MORE, bindings.DONE):
            self._totals.count("refused_prompts_total")
        return status

    def _step(self, _user_data: Any, slot_id: int, answer: Any) -> int:
        def work() -> int:
            slot = self._slots[slot_id]
            others_run = any(other.runs for other in self._slots if other is not slot)
            more = slot.step(self._options.slice_ms / 1000, others_run=others_run)
            if slot.waits:
                self._totals.count("waited_slices_total")
            self._describe(slot, slot_id, answer.contents, done=not more)
            return bindings.MORE if more else bindings.DONE

        status = self._counted(work, answer.contents)
        # it was planned to fit: what is missing now, others have taken
        return bindings.NO_CELLS if status == bindings.TOO_LONG else status

    def _cancel(self, _user_data: Any, slot_id: int) -> None:
        try:
            self._slots[slot_id].cancel()
        except BaseException:
            logger.exception("a prefill could not be cancelled")

    def _finished(self, _user_data: Any, slot_id: int, text: bytes, n_tokens: int) -> None:
        try:
            self._answers.end(slot_id, text.decode("utf-8", "replace"), n_tokens)
        except BaseException:
            logger.exception("an answer could not be noted")

    def _get(self, _user_data: Any, name: bytes, sink: Any, sink_data: int) -> bool:
        try:
            data = self._resource(name.decode("utf-8", "replace"))
        except BaseException:
            logger.exception("%r could not be read", name)
            return False
        if data is None:
            return False
        sink(sink_data, data, len(data))
        return True

    def _resource(self, name: str) -> bytes | None:
        """What the server shows under a name; None: there is no such thing."""
        if name == "props":
            return json.dumps(self._props).encode()
        if name == "metrics":
            return self._totals.prometheus().encode()
        if not self._answers.on:
            return None
        if name == "page":
            return PAGE.read_bytes()
        if name == "answers":
            return self._answers.list_json()
        kind, _, number = name.partition("/")
        return self._answers.one_json(int(number)) if kind == "answers" and number.isdecimal() else None

    def _describe(self, slot: Slot, slot_id: int, answer: Any, *, done: bool) -> None:
        answer.n_past, answer.n_pruned, answer.n_dropped = slot.n_past, slot.n_pruned, slot.n_dropped
        answer.n_done = slot.n_done
        answer.text = b""
        if done:
            report = slot.report()
            self._totals.add(report)
            self._answers.begin(slot_id, slot.tokens, slot.n_held, slot.last_report, report)
            answer.text = json.dumps(report).encode()


def _sizes(sizes: Any, ctx: int) -> dict[str, Any]:
    n_cells = sizes.n_cells * sizes.n_slots
    return {
        "n_cells_slot": sizes.n_cells,
        "n_ctx_slot": sizes.n_ctx_slot,
        "slice_tokens": sizes.n_slice,
        "kv_bytes": lib.context_kv_bytes(ctx),
        "kv_bytes_full": lib.context_kv_bytes(ctx) // n_cells * sizes.n_ctx_slot * sizes.n_slots,
    }


def _incoming(prompt: Any) -> Incoming:
    return Incoming(
        tokens=prompt.tokens[: prompt.n_tokens],
        n_past=prompt.n_past,
        n_pruned=prompt.n_pruned,
        n_dropped=prompt.n_dropped,
        n_answer=prompt.n_answer,
        n_common=prompt.n_common,
        other=prompt.other,
        spans=[(span.role, span.begin, span.end) for span in prompt.spans[: prompt.n_spans]],
        options=prompt.options.decode("utf-8", "replace"),
        unprunable=None if prompt.unprunable is None else prompt.unprunable.decode(),
        adapters=[(one.adapter, one.scale) for one in prompt.adapters[: prompt.n_adapters]],
        adapters_id=prompt.adapters_id,
    )


def _says(work: Callable[[], Any], text: Any, n_text: int) -> bool:
    """Whether something worked; if not, `text` says what was wrong."""
    try:
        work()
        return True
    except BaseException as err:
        message = str(err).encode("utf-8", "replace")[: n_text - 1] or type(err).__name__.encode()
        ctypes.memmove(text, message + b"\0", len(message) + 1)
        return False


def _status(work: Callable[[], int], answer: Any) -> int:
    """What the work returns; if it raises, the status that belongs to the error, and its text."""
    try:
        return work()
    except BaseException as err:
        answer.text = str(err).encode("utf-8", "replace")[:1000] or type(err).__name__.encode()
        if not isinstance(err, AslError):
            logger.exception("the engine failed")
        return next((status for kind, status in _STATUS if isinstance(err, kind)), bindings.FAILED)
