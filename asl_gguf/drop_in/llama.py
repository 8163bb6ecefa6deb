"""`Llama`: llama_cpp.Llama whose long prompts are pruned. Translation only: `engine.sequence` decides."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections import abc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..budget.memory import full_cache_note
from ..budget.rule import BudgetRule
from ..budget.share import Budget, round_cells
from ..budget.targets import BudgetValue
from ..cache.host_kv import HostKV
from ..engine.place import OwnContext
from ..engine.plan import UNASKED, Request
from ..engine.sequence import Sequence
from ..engine.stock_report import stock_report
from ..engine.transcript import Transcript, taken_back
from ..errors import (
    ContextFullError,
    PromptError,
    PruningDisabledWarning,
    StateError,
    UnaskedWarning,
    UnsupportedModelError,
)
from ..models import gguf_header
from ..models.named import resolve
from ..native import context, vocabulary
from ..native.bindings import llama_cpp
from ..native.dequant import set_decoding
from ..native.session import Progress, Session, unsupported_reason
from ..policies import DEFAULT, Policy
from ..policies.contract import Indices
from ..policies.protect import Protected
from ..report import DecodeReport, PrefillReport
from . import generation, init_errors
from .answering import AnsweringLlama
from .arguments import LlamaArguments, check_names, joined_signature, refusing_unknown
from .gate import Gate, Tokenizer, gated
from .generation import Call, current_call
from .options import AslOptions, check_progress, unprunable_use
from .progress import progress_of
from .values import SEEDS, Tokens, check_grammar, checked_integer, token_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class Llama(AnsweringLlama):
    """Drop-in for `llama_cpp.Llama`.

    Args:
        model_path: a GGUF file, or the name of a pulled model (`asl-gguf models`).
        n_ctx: longest prompt + answer in tokens, rounded up to 256s as llama.cpp does; 0 takes the model's training
            context. The KV cache is smaller than that: see asl_decode_ctx.
        asl_budget: float in (0, 1]: share of the prompt's tokens to keep; int: number of tokens; "fit:2GiB": as many
            as that much KV memory holds; "ttft:5s": as many as are predicted to leave the first token in time; "auto" or
            "auto:0.05-0.4": as many as the question needs, between two shares; None: stock llama_cpp.Llama.
        asl_policy: name in `asl_gguf.policies.REGISTRY`, or a Policy object.
        asl_decode_ctx: KV cells of the decode context; default: the budget at n_ctx plus asl_room; n_ctx for a time.
        asl_room: cells beside the budget, for the answer and later turns (default 1,024).
        asl_min_prompt: prompts up to this many tokens are not pruned by a share or for a time (default 256).
        asl_dequant: on CPUs, weights in another form while their layer runs. True or "auto" (default): packed, or
            expanded to F16, where that was measured to be faster; "int8", "int16": packed, activations in so many bits
            ("auto" takes 8 on AVX-512 VNNI, where attention is computed with integers of 16 bits then, else 16);
            "all": F16. All of these compute attention with a kernel of our own (AVX2, AVX-512; `last_prefill.attention`).
            "auto" and "int8" decode with a kernel of our own, too (AVX-512 VNNI; Q4_1, Q5_0 and Q5_1).
            False or "off": weights as stored and llama.cpp's attention, bit-identical to stock.
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
            second time (gemfilter, asl-two-pass) keep nothing there. "q8_0" quantises
            the K/V there: half the memory of an f16 cache, and what is selected from them is rounded. Of recurrent states
            a few along the prompt are kept: one that leaves it before them runs whole, and its report says so.
        asl_progress: called as (done, total) in token-layers during a prefill; False cancels it. The total is an estimate:
            it follows the layer from which on fewer tokens run. True shows a bar (tqdm's where it is installed).
        **kwargs: those of llama_cpp.Llama.

    Raises:
        OptionError: an `asl_*` option is unknown or out of its domain.
        OptionTypeError, OptionError: an argument of llama_cpp.Llama is of the wrong type, or cannot be used.
        ModelError: no model at model_path, or it cannot be loaded. AdapterError: the same for lora_path.

    Warns:
        PruningDisabledWarning: the model or the use cannot be pruned; answers come from the full cache.
        UnaskedWarning: a question goes on from a document that was prefilled or loaded without `asl_full_kv`.
    """

    _asl_takes_unknown = False
    """arguments that the parent does not know either are dropped, as it drops them"""
    last_decode: DecodeReport | None
    """speed of the last answer; None before the first one"""
    _generating = False
    """the parent makes a token"""

    def __init__(
        self,
        model_path: str,
        *,
        n_ctx: int = 512,
        asl_budget: BudgetValue | None = None,
        asl_policy: str | Policy = DEFAULT,
        asl_decode_ctx: int | None = None,
        asl_room: int = AslOptions.room,
        asl_min_prompt: int = Budget.min_prompt,
        asl_dequant: bool | str = "auto",
        asl_protect: Protected = None,
        asl_guard: float | None = None,
        asl_calibration: bool = True,
        asl_full_kv: bool | str = False,
        asl_progress: Progress | bool | None = None,
        **llama_arguments: Unpack[LlamaArguments],
    ) -> None:
        self._stack, self._gate = contextlib.ExitStack(), Gate()  # close() needs them, however early this fails
        kwargs: dict[str, Any] = {**llama_arguments}
        given = {
            "asl_policy": asl_policy,
            "asl_decode_ctx": asl_decode_ctx,
            "asl_room": asl_room,
            "asl_min_prompt": asl_min_prompt,
            "asl_dequant": asl_dequant,
            "asl_protect": asl_protect,
            "asl_guard": asl_guard,
            "asl_calibration": asl_calibration,
            "asl_full_kv": asl_full_kv,
            "asl_progress": asl_progress,
        } | {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("asl_")}  # unknown ones are refused
        self._asl = AslOptions.parse(asl_budget, given)
        if not self._asl_takes_unknown:
            check_names(kwargs, ("model_path", "n_ctx"))
        self._asl_session: Session | None = None
        self._sequence: Sequence | None = None
        self._text = Transcript(0)
        self._asl_reason: str | None = None
        self.last_prefill = None
        self.last_decode = None
        init_errors.check(n_ctx, kwargs)
        n_ctx = int(n_ctx)  # of NumPy's
        path = str(resolve(model_path))
        if self._asl.budget is None:
            self._init_parent(path, n_ctx, kwargs)
            return
        self._init_pruned(path, n_ctx, kwargs)

    def _init_pruned(self, path: str, n_ctx: int, kwargs: dict[str, Any]) -> None:
        """Makes a context with cells for the budget; where nothing can be pruned, one with all cells, and warns."""
        self._asl = self._asl.calibrate(path)
        n_ctx = round_cells(n_ctx or gguf_header.n_ctx_train(path, kwargs.get("kv_overrides")))
        self._asl_reason = unprunable_use(kwargs)
        if self._asl_reason is None:
            rule = self._asl.rule(path, n_ctx, kwargs)
            self._init_parent(path, rule.n_cells, kwargs)
            try:
                self._asl_reason = self._attach(rule, kwargs)
            except BaseException:
                self.close()
                raise
        if self._asl_reason is not None:
            self.close()
            self._init_parent(path, n_ctx, kwargs)
            self._asl_reason += full_cache_note(self._asl.budget, self.ctx)
            warnings.warn(f"not pruning: {self._asl_reason}", PruningDisabledWarning, stacklevel=3)

    def _init_parent(self, path: str, n_ctx: int, kwargs: dict[str, Any]) -> None:
        init_errors.check_cells(path, n_ctx, kwargs)
        self._gate.closed = False  # where a first try was given up
        # llama.cpp logs every context it makes, and each pruned prompt makes one
        kwargs = {"verbose": False, **kwargs}
        if kwargs.get("draft_model") is not None:
            kwargs["logits_all"] = True  # the parent wants them, but has room for those of n_batch tokens alone
        try:
            with context.assertions_caught() as logged:
                super().__init__(path, n_ctx=n_ctx, **init_errors.without_adapter(kwargs))
            if not kwargs.get("tokenizer"):
                self.tokenizer_ = Tokenizer(self)
            if kwargs.get("seed") == 0:  # which the parent takes for none
                self.set_seed(0)
            if lora_path := kwargs.get("lora_path"):
                init_errors.attach_adapter(self, lora_path)
            if kwargs.get("kv_overrides") and not kwargs.get("vocab_only"):
                init_errors.check_computes(self, kwargs["kv_overrides"])
        except BaseException as err:
            self.close()  # in order: left to the garbage collector, the model may go before what needs it
            typed = init_errors.translated(err, path, n_ctx, kwargs, logged) if isinstance(err, Exception) else None
            if typed is None:
                raise
            raise typed from err

    def _attach(self, rule: BudgetRule, kwargs: dict[str, Any]) -> str | None:
        """Puts a session on the decode context. Returns why the model cannot be pruned, if it cannot."""
        if reason := unsupported_reason(self.model):
            return reason
        context.check_ranking(self.ctx, rule.context.policy)
        n_ctx = rule.context.n_ctx
        params = type(self.context_params).from_buffer_copy(self.context_params)
        params.n_batch = min(n_ctx, kwargs.get("n_batch", 512))
        params.n_ubatch = min(params.n_batch, kwargs.get("n_ubatch", 512))
        try:
            session = Session(self.ctx, params, n_ctx)
        except UnsupportedModelError as err:
            return str(err)
        self._asl_session = session
        self._stack.callback(session.close)  # before the context, which entered the stack earlier
        host = HostKV.of(self._asl.full_kv, session)
        if host:
            self._stack.callback(host.clear)
        rule.bind(session.info())
        session.set_dequant(self._asl.dequant)
        set_decoding(self.ctx, self._asl.dequant)
        session.set_progress(self._gate.reporting(progress_of(self._asl.progress)))
        # for its users this object has n_ctx tokens; only the KV cache is smaller
        self._n_ctx = self.context_params.n_ctx = n_ctx
        self._text = Transcript(n_ctx)
        self._sequence = Sequence(
            OwnContext(self.ctx, session), rule, self._text,
            guard=self._asl.guard, dequant=self._asl.dequant, host=host, calibration=self._asl.calibration,
        )  # fmt: skip
        self._sequence.policy = self._gate.guarding_policy(self._sequence.policy)
        self._asl_fingerprint = self._fingerprint_now()
        return None

    def set_progress(self, progress: Progress | bool | None) -> None:
        """Replaces `asl_progress`.

        Raises:
            OptionError: as `Llama` does.
        """
        check_progress(progress)
        if self._asl_session is not None:
            self._asl_session.set_progress(self._gate.reporting(progress_of(progress)))

    def set_seed(self, seed: int) -> None:
        """`llama_cpp.Llama.set_seed`, for seeds of 32 bits."""
        # the parent draws one from 0 to 2**32, both included
        is_drawn = isinstance(seed, int) and seed == SEEDS.stop
        super().set_seed(seed if is_drawn else checked_integer("seed", seed, SEEDS))

    def n_ctx(self) -> int:
        """Longest prompt + answer in tokens. (llama_n_ctx of the decode context is its KV cells.)"""
        return self._n_ctx if self._asl_session is not None else super().n_ctx()

    @property
    def n_cells(self) -> int:
        """KV cells of the decode context."""
        with self._gate.asking():
            return super().n_ctx()

    def tokenizer(self) -> Tokenizer:
        """llama_cpp's tokenizer of this model; after close() its calls are errors."""
        return Tokenizer(self)

    def close(self) -> None:
        """Frees the model and its contexts. Calls that need them are errors from then on."""
        self._gate.close(super().close)

    def reset(self) -> None:
        """Forgets what was evaluated, and K/V of all tokens on the host too: weights may have changed."""
        self._forget()
        if self._sequence is not None and self._sequence.host is not None and not self._generating:
            self._sequence.host.clear()

    def _forget(self) -> None:
        super().reset()
        self._text.clear()
        if self._sequence is not None:
            self._sequence.clear()

    def eval(self, tokens: abc.Sequence[int]) -> None:
        """Evaluates tokens after those evaluated already; nothing is pruned.

        Raises:
            ContextFullError: the decode context has no cells left for them.
            StateError: n_tokens was set to less than the pruned prompt, or to more than was evaluated.
            PromptError: a token is none of the vocabulary.
        """
        tokens = token_list(tokens, self._n_vocab)
        if self._sequence is not None:
            self._sequence.check_append(len(tokens))
        else:
            self._check_room(len(tokens))
        if not self._generating:
            self._note_adapters()
        super().eval(tokens)
        self._text.sampled = None  # if there was one, it is among the tokens, or they take its place

    def _check_room(self, n_tokens: int) -> None:
        """What the parent leaves to arrays of NumPy and to llama.cpp, without a budget."""
        if self.model_params.vocab_only:
            raise StateError("expected a model with weights, got one loaded with vocab_only=True; load it without")
        n_most = min(self._n_ctx, len(self.input_ids)) - self.n_tokens
        if n_tokens > n_most:
            raise ContextFullError(f"expected at most {n_most} more tokens of n_ctx, got {n_tokens}; raise n_ctx")
        if (n_most := context.n_evaluated(self.ctx)) > self.n_tokens and not context.remove_from(
            self.ctx, self.n_tokens
        ):
            raise taken_back(n_most, self.n_tokens)

    def generate(self, tokens: abc.Sequence[int], *args: Any, **kwargs: Any) -> Tokens:
        """`llama_cpp.Llama.generate`; a new prompt is prefilled under the budget first.

        Raises:
            PromptError: the prompt is empty, does not fit n_ctx, or has tokens of no vocabulary.
            ContextFullError: the prompt's budget and the answer need more KV cells than there are.
            PrefillCancelled: the progress callback returned False.
            OptionError: a value of the sampler is none that it can use.
            StateError: another prompt came between two tokens of this answer: what it went on from is gone.
        """
        tokens = token_list(tokens, self._n_vocab)  # now, not when the first token is asked for
        given, processors = generation.as_given(self._gate, _GENERATE.bind(self, tokens, *args, **kwargs).arguments)
        check_grammar(given.get("grammar"), self._model.vocab)
        answer = processors.checked(self._generate(tokens, given))
        return answer if self._sequence is None else generation.undisturbed(answer, lambda: self._text.turn)

    def _generate(self, tokens: list[int], given: dict[str, Any]) -> Tokens:
        self._text.turn += 1
        if not given.get("reset", True):
            yield from super().generate(tokens, **given)
            return
        if not tokens:
            raise PromptError("expected at least one token, got an empty prompt")
        call = current_call()
        self.last_prefill = self._prefill(tokens, call)
        ours = self.verbose and self.last_prefill.token_layers > 0
        if ours:
            print(f"Llama.generate: {self.last_prefill}", file=sys.stderr)
        answer = generation.of_parent(self, super().generate(tokens, **given), quiet=ours)
        if call.logprobs is not None:
            answer = call.logprobs.noting(answer)
        answer = generation.timed(answer, self._answer_started, self._answer_goes_on)
        # the parent cuts max_tokens to what n_ctx has room for
        yield from generation.until_full(answer, min(call.max_tokens or 0, self._n_ctx - len(tokens)))

    def _prefill(self, tokens: list[int], call: Call) -> PrefillReport:
        """Runs a prompt as far as it runs layer by layer; the parent evaluates what is left."""
        if context.adapters(self.ctx) != self._asl_adapters:
            self.reset()  # what there is was computed with other weights
            self._note_adapters()
        if self._sequence is None:
            return self._stock_report(tokens)
        request = Request(tokens, call.max_tokens, self._protected(tokens, call))
        plan = self._sequence.plan_on(request)
        if plan is None and self._load_cached(tokens):
            plan = self._sequence.plan_on(request)
        self._sequence.run(plan or self._sequence.plan_anew(request))
        report = self._sequence.report
        assert report is not None
        if report.reason == UNASKED:
            warnings.warn(f"{UNASKED} (pass it to Llama, before prefill and save_prompt)", UnaskedWarning, stacklevel=2)
        return report

    def _protected(self, tokens: list[int], call: Call) -> Callable[[], Indices] | None:
        if not self._asl.protect:
            return None
        model, protect = self.model, self._asl.protect
        return lambda: protect.indices(len(tokens), lambda: [vocabulary.piece(model, i) for i in tokens], call.messages)

    def _stock_report(self, tokens: list[int]) -> PrefillReport:
        return stock_report(
            self.ctx,
            n_tokens=len(tokens),
            n_reused=self._text.n_common(tokens),
            n_kept=len(tokens),
            n_ctx=self._n_ctx,
            info=None,
            policy=self._asl.policy.name,
            budget=len(tokens),
            reason=self._asl_reason or "no budget",
        )

    def _answer_started(self, seconds: float) -> None:
        """The time to the first token is the prefill's, where the parent evaluated the prompt."""
        if self.last_prefill is not None and not self.last_prefill.seconds:
            self.last_prefill = replace(self.last_prefill, prefill_seconds=seconds)

    def _answer_goes_on(self, token: int, report: DecodeReport) -> None:
        self.last_decode = report
        is_text = not llama_cpp.llama_vocab_is_eog(self._model.vocab, token)
        self._text.sampled = token if is_text else None


gated(refusing_unknown(Llama))
Llama.__init__.__signature__ = joined_signature(Llama.__init__)  # type: ignore[attr-defined]
