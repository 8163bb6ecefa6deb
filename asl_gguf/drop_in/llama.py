"""`Llama`: llama_cpp.Llama whose long prompts are pruned. Translation only; the work is in engine.py."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..budget import guard
from ..budget.memory import full_cache_note
from ..budget.rule import BudgetRule
from ..budget.share import round_cells
from ..budget.targets import BudgetValue
from ..cache import snapshot
from ..cache.host_kv import HostKV
from ..engine.guarded import guarded_slices
from ..engine.layers import drained
from ..engine.reusing import ReusingLayers
from ..engine.stock_report import stock_report
from ..errors import ContextFullError, PromptError, PruningDisabledWarning, StateError, UnsupportedModelError
from ..models import gguf_header
from ..models.named import resolve
from ..native import vocabulary
from ..native.bindings import llama_cpp
from ..native.session import Progress, Session, unsupported_reason
from ..policies.contract import Indices
from ..report import DecodeReport, PrefillReport
from . import init_errors
from .generation import Tokens, timed, undisturbed, until_full
from .options import AslOptions, unprunable_use
from .saving import SavingLlama

logger = logging.getLogger(__name__)

_MIN_LAYERED = 256
"""shorter prompts that are not pruned gain nothing from running layer by layer"""


_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class Llama(SavingLlama):
    """Drop-in for `llama_cpp.Llama`.

    Args:
        model_path: a GGUF file, or the name of a pulled model (`asl-gguf models`).
        n_ctx: longest prompt + answer in tokens, rounded up to 256s as llama.cpp does; 0 takes the model's training
            context. The KV cache is smaller than that: see asl_decode_ctx.
        asl_budget: float in (0, 1]: share of the prompt's tokens to keep; int: number of tokens; "fit:2GiB": as many
            as that much KV memory holds; "ttft:5s": as many as are predicted to leave the first token in time;
            None: stock llama_cpp.Llama.
        asl_policy: name in `asl_gguf.policies.REGISTRY`, or a Policy object.
        asl_decode_ctx: KV cells of the decode context; default: the budget at n_ctx plus asl_room; n_ctx for a time.
        asl_room: cells beside the budget, for the answer and later turns (default 1,024).
        asl_min_prompt: prompts up to this many tokens are not pruned by a share or for a time (default 256).
        asl_dequant: expand weights without a fast matrix kernel to F16, once per layer and prompt, on
            CPUs: True or "auto" (default), "all", False or "off" (bit-identical to stock).
        asl_protect: keep these tokens whatever their scores: "system", "tools" (all before the first user message),
            "question" (the last user message), (begin, end) spans of token indices, compiled regular expressions,
            or a list of these. They count towards the budget.
        asl_guard: share of the window's attention in (0, 1] that kept K/V must hold, mean over the layers; a prompt
            that falls short gets 2, then 4 times the budget, then the full cache if it fits the cells.
        asl_calibration: False leaves min_layer and tau of a named policy as they are, whatever `asl-gguf calibrate`
            has stored for this model file (default True). A policy object is never changed, nor is a name that writes
            min_layer, min_depth or tau out.
        asl_full_kv: True keeps, in host memory, K/V of all tokens of the last prompt up to the layer where it was cut
            down, and the hidden states after it. Prompts that start alike, such as the next question about a document,
            select anew and run their other tokens alone up to there (default False). A prompt that was cut down
            nowhere is kept in all layers, and what follows it is not cut down either. Policies that run kept tokens a
            second time (gemfilter, asl-two-pass) keep nothing there. "q8_0", "q5_1", "q5_0", "q4_1" or "q4_0" quantise
            the K/V there: half the memory of an f16 cache or less, and what is selected from them is rounded.
        asl_progress: called as (done, total) in token-layers during a prefill; False cancels it.
        **kwargs: those of llama_cpp.Llama.

    Raises:
        OptionError: an `asl_*` option is unknown or out of its domain.
        OptionTypeError, OptionError: an argument of llama_cpp.Llama is of the wrong type, or cannot be used.
        ModelError: no model at model_path, or it cannot be loaded. AdapterError: the same for lora_path.

    Warns:
        PruningDisabledWarning: the model or the use cannot be pruned; answers come from the full cache.
    """

    last_decode: DecodeReport | None
    """speed of the last answer; None before the first one"""

    def __init__(
        self, model_path: str, *, n_ctx: int = 512, asl_budget: BudgetValue | None = None, **kwargs: Any
    ) -> None:
        self._stack = contextlib.ExitStack()  # close() needs it, however early this fails
        options = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("asl_")}
        self._asl = AslOptions.parse(asl_budget, options)
        self._asl_session: Session | None = None
        self._asl_full: HostKV | None = None
        self._asl_rule: BudgetRule | None = None
        self._asl_reason: str | None = None
        self._asl_pruned = ()
        self._asl_max_tokens: int | None = None  # of the completion that is about to generate
        self._asl_messages: Sequence[Any] | None = None  # of the chat whose prompt comes next
        self._asl_sampled: int | None = None  # last token of the answer; the parent does not evaluate it
        self._asl_turn = 0  # prompts and resets so far
        self.last_prefill = None
        self.last_decode = None
        init_errors.check(n_ctx, kwargs)
        path = str(resolve(model_path))
        if self._asl.budget is None:
            self._init_parent(path, n_ctx, kwargs)
            return
        self._asl = self._asl.calibrate(path)
        n_ctx = round_cells(n_ctx or gguf_header.n_ctx_train(path, kwargs.get("kv_overrides")))
        self._asl_reason = unprunable_use(kwargs)
        if self._asl_reason is None:
            self._asl_rule = self._asl.rule(path, n_ctx, kwargs)
            self._init_parent(path, self._asl_rule.n_cells, kwargs)
            try:
                self._asl_reason = self._attach(n_ctx, kwargs)
            except BaseException:
                self.close()
                raise
        if self._asl_reason is not None:
            self.close()
            self._init_parent(path, n_ctx, kwargs)
            self._asl_reason += full_cache_note(self._asl.budget, self.ctx)
            warnings.warn(f"not pruning: {self._asl_reason}", PruningDisabledWarning, stacklevel=2)

    def _init_parent(self, path: str, n_ctx: int, kwargs: dict[str, Any]) -> None:
        # llama.cpp logs every context it makes, and each pruned prompt makes one
        kwargs = {"verbose": False, **kwargs}
        try:
            super().__init__(path, n_ctx=n_ctx, **init_errors.without_adapter(kwargs))
            if lora_path := kwargs.get("lora_path"):
                init_errors.attach_adapter(self, lora_path)
        except BaseException as err:
            self.close()  # in order: left to the garbage collector, the model may go before what needs it
            typed = init_errors.translated(err, path, n_ctx, kwargs) if isinstance(err, Exception) else None
            if typed is None:
                raise
            raise typed from err

    def _attach(self, n_ctx: int, kwargs: dict[str, Any]) -> str | None:
        """Puts a session on the decode context. Returns why the model cannot be pruned, if it cannot."""
        if reason := unsupported_reason(self.model):
            return reason
        params = type(self.context_params).from_buffer_copy(self.context_params)
        params.n_batch = min(n_ctx, kwargs.get("n_batch", 512))
        params.n_ubatch = min(params.n_batch, kwargs.get("n_ubatch", 512))
        try:
            self._asl_session = Session(self.ctx, params, n_ctx)
        except UnsupportedModelError as err:
            return str(err)
        self._stack.callback(self._asl_session.close)  # before the context, which entered the stack earlier
        self._asl_full = HostKV.of(self._asl.full_kv, self._asl_session, self.model_path, kwargs)
        if self._asl_full:
            self._stack.callback(self._asl_full.clear)
        self._rule.bind(self._asl_session.info())
        self._asl_session.set_dequant(self._asl.dequant)
        self._asl_session.set_progress(self._asl.progress)
        # for its users this object has n_ctx tokens; only the KV cache is smaller
        self._n_ctx = self.context_params.n_ctx = n_ctx
        self.input_ids = np.ndarray((n_ctx,), dtype=np.intc)
        self._asl_fingerprint = self._fingerprint_now()
        return None

    def set_progress(self, progress: Progress | None) -> None:
        """Replaces `asl_progress`."""
        if self._asl_session is not None:
            self._asl_session.set_progress(progress)

    def n_ctx(self) -> int:
        """Longest prompt + answer in tokens. (llama_n_ctx of the decode context is its KV cells.)"""
        return self._n_ctx if self._asl_session is not None else super().n_ctx()

    @property
    def n_cells(self) -> int:
        """KV cells of the decode context."""
        return super().n_ctx()

    def reset(self) -> None:
        super().reset()
        self._asl_turn += 1
        self._asl_pruned = ()
        self._asl_sampled = None

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those evaluated already; nothing is pruned.

        Raises:
            ContextFullError: the decode context has no cells left for them.
            StateError: n_tokens was set to less than the pruned prompt, or to more than was evaluated.
        """
        if self._asl_session is not None:
            if self.n_tokens == 0:
                self._asl_pruned = ()
            self._check_whole()
            if self.n_tokens > (n_evaluated := snapshot.n_evaluated(self.ctx)):
                raise StateError(
                    f"expected n_tokens of at most {n_evaluated}, which were evaluated, got {self.n_tokens}; call reset()"
                )
            self._check_room(len(tokens))
        super().eval(tokens)
        self._asl_sampled = None  # if there was one, it is among the tokens, or they take its place

    def _check_room(self, n_tokens: int) -> None:
        if n_tokens > (n_free := self._n_cells_free()):
            raise ContextFullError(
                f"expected at most {n_free} more tokens (of {self.n_cells} KV cells and n_ctx = {self._n_ctx}), got {n_tokens}; "
                "pass a larger asl_decode_ctx or n_ctx, or ask for a shorter answer"
            )

    def _n_cells_free(self) -> int:
        """Tokens that cells and n_ctx have room for after the n_tokens evaluated ones; cells of later ones are freed."""
        assert self._asl_session is not None
        if self.n_tokens == 0:
            return min(self.n_cells, self._n_ctx)
        self._trim_cells()
        return min(self.n_cells - self._asl_session.info().n_cells_used, self._n_ctx - self.n_tokens)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Tokens:
        """`llama_cpp.Llama.generate`; a new prompt is prefilled under the budget first.

        Raises:
            PromptError: the prompt is empty or does not fit n_ctx.
            ContextFullError: the prompt's budget and the answer need more KV cells than there are.
            PrefillCancelled: the progress callback returned False.
            StateError: another prompt came between two tokens of this answer: what it went on from is gone.
        """
        answer = self._generate(list(tokens), args, kwargs)
        yield from answer if self._asl_session is None else undisturbed(answer, lambda: self._asl_turn)

    def _generate(self, tokens: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tokens:
        self._asl_turn += 1
        max_tokens, self._asl_max_tokens = self._asl_max_tokens, None
        if not _GENERATE.bind(self, tokens, *args, **kwargs).arguments.get("reset", True):
            yield from super().generate(tokens, *args, **kwargs)
            return
        if not tokens:
            raise PromptError("expected at least one token, got an empty prompt")
        if self._asl_session is not None and self.n_tokens > snapshot.n_evaluated(self.ctx):
            self.reset()  # set by hand
        if self._asl_session is None:
            self._report_stock(tokens, self._asl_reason or "no budget")
        elif self._can_reuse(tokens, max_tokens) or (self._load_cached(tokens) and self._can_reuse(tokens, max_tokens)):
            self._report_stock(tokens, "the start of the prompt was in the cache")
        else:
            self._prefill(tokens, max_tokens)
        answer = timed(super().generate(tokens, *args, **kwargs), self._answer_started, self._answer_goes_on)
        yield from until_full(answer, max_tokens or 0)

    def _can_reuse(self, tokens: list[int], max_tokens: int | None) -> bool:
        """Whether the state in the decode context serves this prompt.

        K/V that were pruned for one question serve a prompt that goes on from the whole of what they
        hold, and no other. Unpruned K/V serve every prompt with a common start; the parent finds it.
        """
        if self.n_tokens == 0:
            return False
        self._trim_cells()
        if self._goes_on(tokens):
            if self._selects_again(tokens):
                return False
            n_new = len(tokens) - self.n_tokens
            room = self._n_cells_free() - n_new
            # a turn that is worth pruning is pruned, with all that came before, unless that was done already
            small = self._asl_n_pruned > 0 or self._rule.extends(n_new, self.n_tokens)
            return small and room >= (max_tokens or 1) and (n_new > 0 or not self._requires_eval)
        fits_budget = self._rule.kept(len(tokens)) == len(tokens)
        return not self._asl_n_pruned and fits_budget and self.n_cells - len(tokens) >= (max_tokens or 1)

    def _selects_again(self, tokens: list[int]) -> bool:
        """Whether a longer prompt chooses anew among all K/V of the one that was pruned."""
        n_pruned, longer = self._asl_n_pruned, len(tokens) > self.n_tokens
        return bool(self._asl_full and n_pruned and longer and self._asl_full.n_common(tokens) >= n_pruned)

    @property
    def _rule(self) -> BudgetRule:
        assert self._asl_rule is not None
        return self._asl_rule

    def _prefill(self, tokens: list[int], max_tokens: int | None) -> None:
        """Runs a new prompt, so that the parent finds it evaluated."""
        assert self._asl_session is not None
        n_tokens, goes_on = len(tokens), bool(self._asl_n_pruned) and self._goes_on(tokens)
        selects_again = goes_on and self._selects_again(tokens)
        if n_tokens >= self._n_ctx:
            raise PromptError.too_long(n_tokens, self._n_ctx)
        self._rule.measure(self._asl_session, tokens, self.reset)
        n_kept = self._rule.kept(n_tokens)
        protected = self._protected(tokens) if self._asl.protect and n_kept < n_tokens else None
        n_kept = self._rule.with_protected(n_kept, n_tokens, protected.size if protected is not None else 0)
        n_rows = self._asl.policy.max_rows(n_tokens, n_kept) if n_kept < n_tokens else n_tokens
        n_answer = min(max_tokens or 1, self._n_ctx - n_tokens)
        if n_rows + n_answer > self.n_cells:
            raise ContextFullError(
                f"expected at most {self.n_cells} KV cells to be needed, got {n_rows} for the prompt and {n_answer} for the "
                f"answer; {self._rule.remedy(n_rows + n_answer, n_answer)}"
            )
        reason = "the prompt fits the budget" if n_kept == n_tokens else None
        if reason is None and goes_on:
            no_room = "the K/V kept so far left no room for this turn: the whole prompt was pruned again"
            reason = "selected again for this turn, from K/V of all tokens" if selects_again else no_room
        self.reset()
        if n_kept == n_tokens and (self._asl.dequant == "off" or n_tokens < _MIN_LAYERED):
            self.last_prefill = self._rule.annotate(self._report_stock(tokens, reason))
            return
        session: Any = ReusingLayers(self._asl_session, self._asl_full) if self._asl_full else self._asl_session
        cap = guard.CAP if self._asl.decode_ctx is None else None
        report = drained(
            guarded_slices(
                session,
                tokens,
                self._asl.policy,
                n_kept,
                guard=guard.Guard(self._asl.guard, cap),
                n_most=self.n_cells - n_answer,
                reason=reason,
                protected=protected if n_kept < n_tokens else None,
            )
        )
        self.last_prefill = replace(
            self._rule.annotate(session.corrected(report) if self._asl_full else report),
            kv_bytes_full=round_cells(self._n_ctx) * self._asl_session.info().kv_bytes_cell,
            kv_bytes_resident=sum(snapshot.resident_bytes(self.ctx)),
            calibration=self._asl.calibration,
        )
        self.input_ids[:n_tokens] = tokens
        self.n_tokens = n_tokens
        self._requires_eval = False
        self._asl_pruned = tuple(tokens) if report.pruned else ()
        logger.info(
            "prefill: kept %d of %d tokens, selection layer %s", report.kept_tokens, n_tokens, report.selection_layer
        )

    def _protected(self, tokens: list[int]) -> Indices:
        model, messages = self.model, self._asl_messages
        return self._asl.protect.indices(len(tokens), lambda: [vocabulary.piece(model, i) for i in tokens], messages)

    def _report_stock(self, tokens: list[int], reason: str | None) -> PrefillReport:
        info = self._asl_session.info() if self._asl_session is not None else None
        n_reused = llama_cpp.Llama.longest_token_prefix(self._input_ids.tolist(), tokens) if self.n_tokens else 0
        dropped = info is not None and self.n_tokens and self._asl_n_pruned
        report = stock_report(
            self.ctx,
            n_tokens=len(tokens),
            n_reused=n_reused,
            n_kept=info.n_cells_used + len(tokens) - n_reused if info and dropped else len(tokens),
            n_ctx=self._n_ctx,
            info=info,
            policy=self._asl.policy.name,
            budget=self._rule.kept(len(tokens)) if info else len(tokens),
            reason=reason,
        )
        self.last_prefill = replace(report, full_kv_bytes=self._asl_full.n_bytes if self._asl_full else 0)
        return self.last_prefill

    def _answer_started(self, seconds: float) -> None:
        """The time to the first token is the prefill's, where the parent evaluated the prompt."""
        if self.last_prefill is not None and not self.last_prefill.seconds:
            self.last_prefill = replace(self.last_prefill, prefill_seconds=seconds)

    def _answer_goes_on(self, token: int, report: DecodeReport) -> None:
        self.last_decode = report
        self._asl_sampled = token

    def create_chat_completion(self, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        self._asl_messages = messages
        try:
            return super().create_chat_completion(messages, *args, **kwargs)
        finally:
            self._asl_messages = None

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # a stream's prompt runs when its first chunk is asked for, long after create_chat_completion has returned
        return self._completion(self._asl_messages, super()._create_completion(*args, **kwargs), kwargs)

    def _completion(self, messages: Sequence[Any] | None, chunks: Iterator[Any], kwargs: Any) -> Iterator[Any]:
        max_tokens = kwargs.get("max_tokens", 16)
        self._asl_max_tokens = max_tokens if max_tokens is not None and max_tokens > 0 else None
        self._asl_messages = messages
        try:
            yield from chunks
        except ValueError as err:
            # the parent names the decode context's cells, which are not what limits the prompt
            too_long = re.match(r"Requested tokens \((\d+)\) exceed context window", str(err))
            if self._asl.budget is None or too_long is None:
                raise
            raise PromptError.too_long(int(too_long[1]), self._n_ctx) from err
        finally:
            self._asl_max_tokens = self._asl_messages = None
