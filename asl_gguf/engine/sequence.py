"""One conversation in one sequence of a llama_context: what its cells hold, and what a prompt may do with them."""

from __future__ import annotations

import inspect
import logging
from collections import abc
from collections.abc import Callable, Generator
from dataclasses import replace

from ..budget.guard import CAP, Guard
from ..budget.late import PromptBudget, guarded_budget
from ..budget.rule import BudgetRule
from ..budget.share import round_cells
from ..cache.host_kv import HostKV
from ..errors import ContextFullError, PromptError, StateError
from ..native import context
from ..native.bindings import llama_cpp
from ..native.session import Session
from ..policies.contract import Indices, LateBudget
from ..report import PrefillReport
from .guarded import guarded_slices
from .layers import Layers
from .place import Place
from .plan import UNASKED, Plan, Request
from .reusing import ReusingLayers
from .stock_report import stock_report
from .transcript import Transcript, taken_back
from .turn import TurnLayers, of_whole_prompt

logger = logging.getLogger(__name__)

_MIN_LAYERED = 256
"""shorter prompts that are not pruned gain nothing from running layer by layer"""


class Sequence:
    """Plans, runs and remembers the prompts of one conversation.

    A pruned state serves only a prompt that goes on from the whole of it: `plan` sees to that, here and nowhere else.
    A prompt goes `plan`, `start`, `step` until it returns False; `cancel` ends it early. What llama.cpp evaluates by
    itself (see `Action`) is reported as if it had happened.

    Args:
        place: where the cells are.
        rule: how many tokens of a prompt are kept, under which policy.
        transcript: the tokens.
        guard: `asl_guard`.
        dequant: `asl_dequant`, as `Session.set_dequant` takes it.
        host: K/V of all tokens, to select from again; None: they are not kept.
        calibration: where the policy's parameters come from, for reports.
        source: gives the layers that a prompt runs through; None: those of the session, and what `host` has.
    """

    report: PrefillReport | None = None
    """what happened to the last prompt; None before the first one"""

    def __init__(
        self,
        place: Place,
        rule: BudgetRule,
        transcript: Transcript,
        *,
        guard: float | None = None,
        dequant: str = "off",
        host: HostKV | None = None,
        calibration: str | None = None,
        source: Callable[[Session, Plan], Layers] | None = None,
    ) -> None:
        self.place = place
        self.rule = rule
        self.policy = rule.context.policy
        self.transcript = transcript
        self.host = host
        self.guard = Guard(guard, CAP if rule.context.decode_ctx is None else None)
        self._dequant = dequant
        self.calibration = calibration
        self.source = source
        self._plan: Plan | None = None
        self._work: Generator[None, None, PrefillReport] | None = None
        self._turns: tuple[tuple[int, int], ...] = ()

    # What the cells hold

    @property
    def n_ctx(self) -> int:
        """Longest prompt + answer in tokens."""
        return self.rule.context.n_ctx

    @property
    def n_free(self) -> int:
        """Tokens that cells and n_ctx have room for after the evaluated ones; cells of later ones are freed."""
        if self.transcript.n_tokens > 0:
            self.trim()
        n_tokens = self.transcript.n_tokens
        if n_tokens == 0:
            return min(self.place.n_cells, self.n_ctx)
        return min(self.place.n_cells - self.place.n_used, self.n_ctx - n_tokens)

    def trim(self) -> None:
        """Frees cells after n_tokens: an abandoned stream's, or because n_tokens was set to less.

        The logits there are were those of the last token that goes.
        """
        text = self.transcript
        back = self.place.n_evaluated > text.n_tokens
        if back:
            text.needs_eval = True
        blind = back and not text.pruned and not self.place.sees_back(text.n_tokens)
        if not self.place.remove_from(text.n_tokens) or blind:
            self.clear()  # of a hybrid model's state, nothing can be taken back: the next prompt begins anew

    def check_append(self, n_tokens: int) -> None:
        """Before n_tokens are evaluated after the ones that were.

        Raises:
            StateError: n_tokens was set to what these cells cannot go on from.
            ContextFullError: there are no cells left for them.
        """
        text = self.transcript
        if text.n_tokens == 0:
            text.pruned = ()
        text.check_whole()
        if text.n_tokens > (n_evaluated := self.place.n_evaluated):
            raise StateError(
                f"expected n_tokens of at most {n_evaluated}, which were evaluated, got {text.n_tokens}; call reset()"
            )
        n_before, n_free = text.n_tokens, self.n_free
        if text.n_tokens < n_before:
            raise taken_back(n_evaluated, n_before)
        if n_tokens > n_free:
            raise ContextFullError(
                f"expected at most {n_free} more tokens (of {self.place.n_cells} KV cells and n_ctx = {self.n_ctx}), got "
                f"{n_tokens}; pass a larger asl_decode_ctx or n_ctx, or ask for a shorter answer"
            )

    def clear(self) -> None:
        """Nothing is evaluated. Cells are freed once others are needed."""
        self.transcript.clear()
        self.place.clear()
        self._turns = ()

    # A prompt

    def plan(self, request: Request) -> Plan:
        """What `start` would do with a prompt: go on from what the cells hold, or begin anew.

        Raises:
            PromptError, ContextFullError, OptionError: as `plan_anew`.
        """
        return self.plan_on(request) or self.plan_anew(request)

    def plan_on(self, request: Request) -> Plan | None:
        """What `start` would do with a prompt that the cells serve as they are; None: they do not.

        K/V that were pruned for one question serve a prompt that goes on from the whole of what they hold, and no
        other. Unpruned K/V serve every prompt with a common start.

        Raises:
            PromptError: the prompt is empty.
        """
        if not request.tokens:
            raise PromptError("expected at least one token, got an empty prompt")
        if self.transcript.n_tokens > self.place.n_evaluated:
            self.clear()  # n_tokens was set by hand
        if self.transcript.n_tokens == 0:
            return None
        self.trim()
        if self.transcript.n_tokens == 0:
            return None
        return self._plan_turn(request) or self._plan_append(request)

    def _plan_append(self, request: Request) -> Plan | None:
        text, tokens = self.transcript, request.tokens
        n_common = text.n_common(tokens)
        unasked = text.unasked and len(tokens) > n_common
        reason = UNASKED if unasked else "the start of the prompt was in the cache"
        plan = Plan("append", tuple(tokens), n_common, reason=reason)
        if text.is_start_of(tokens):
            n_new = len(tokens) - text.n_tokens
            small = bool(text.pruned) or self.rule.extends(n_new, text.n_tokens)
            fits = self.n_free - n_new >= request.n_answer and (n_new > 0 or not text.needs_eval)
            return plan if small and fits and not self._selects_again(tokens) else None
        fits = self.place.n_cells - len(tokens) >= request.n_answer and not text.pruned
        return plan if fits and self.rule.kept(len(tokens)) == len(tokens) and self.place.sees_back(n_common) else None

    def _selects_again(self, tokens: abc.Sequence[int]) -> bool:
        """Whether a longer prompt chooses anew among all K/V of the one that was pruned."""
        n_pruned, longer = len(self.transcript.pruned), len(tokens) > self.transcript.n_tokens
        if not self.host or not n_pruned or not longer or self.host.n_common(tokens) < n_pruned:
            return False
        return self.host.reusable(tokens, len(tokens)) > 0

    def _plan_turn(self, request: Request) -> Plan | None:
        """Where the prompt goes on from a pruned past and brings enough to be pruned as well; None: it does not."""
        text, tokens, policy = self.transcript, request.tokens, self.policy
        if not text.pruned or not text.is_start_of(tokens) or self._selects_again(tokens):
            return None
        n_past, n_new = text.n_tokens, len(tokens) - text.n_tokens
        possible = not policy.two_pass and self.place.takes_turns and len(tokens) < self.n_ctx
        if not possible or n_new <= policy.min_kept or (n_kept := self.rule.kept(n_new)) >= n_new:
            return None
        protected = self._protected(request, n_past)
        n_kept = self.rule.with_protected(n_kept, n_new, 0 if protected is None else protected.size)
        n_most = self.n_free - min(request.n_answer, self.n_ctx - len(tokens))
        if n_kept >= n_new or policy.max_rows(n_new, n_kept) > n_most:
            return None
        return Plan("turn", tuple(tokens), n_past, n_kept, n_most, protected, UNASKED if text.unasked else None)

    def plan_anew(self, request: Request) -> Plan:
        """What `start` would do with a prompt that begins anew. Only a `ttft:` budget that knows no speed yet runs something.

        Raises:
            PromptError: the prompt does not fit n_ctx.
            ContextFullError: the prompt's budget and the answer need more KV cells than there are.
            OptionError: the budget is too small for what is protected.
        """
        tokens, n_tokens = request.tokens, len(request.tokens)
        goes_on = bool(self.transcript.pruned) and self.transcript.is_start_of(tokens)
        again = goes_on and self._selects_again(tokens)
        if n_tokens >= self.n_ctx:
            raise PromptError.too_long(n_tokens, self.n_ctx)
        self.rule.measure(self.place.open, tokens, self.clear)
        n_kept = self.rule.kept(n_tokens)
        protected = self._protected(request, 0) if n_kept < n_tokens else None
        n_kept = self.rule.with_protected(n_kept, n_tokens, 0 if protected is None else protected.size)
        n_rows = self._n_rows(n_tokens, n_kept)
        n_answer = min(request.n_answer, self.n_ctx - n_tokens)
        if n_rows + n_answer > self.place.n_cells:
            raise ContextFullError(
                f"expected at most {self.place.n_cells} KV cells to be needed, got {n_rows} for the prompt and {n_answer} "
                f"for the answer; {self.rule.remedy(n_rows + n_answer, n_answer)}"
            )
        whole = n_kept == n_tokens
        reason = "the prompt fits the budget" if whole else None
        if goes_on and not whole:
            no_room = "the K/V kept so far left no room for this turn: the whole prompt was pruned again"
            reason = "selected again for this turn, from K/V of all tokens" if again else no_room
        evaluates = whole and (self._dequant == "off" or n_tokens < _MIN_LAYERED)
        return Plan(
            "evaluate" if evaluates else "prefill",
            tuple(tokens),
            n_kept=n_kept,
            n_most=self.place.n_cells - n_answer,
            protected=None if whole else protected,
            reason=reason,
        )

    def _n_rows(self, n_tokens: int, n_kept: int) -> int:
        """Most rows that a layer keeps."""
        return self.policy.max_rows(n_tokens, n_kept) if n_kept < n_tokens else n_tokens

    def _protected(self, request: Request, n_past: int) -> Indices | None:
        if request.protected is None:
            return None
        indices = request.protected()
        return (indices[indices >= n_past] - n_past).astype(indices.dtype)

    def start(self, plan: Plan) -> None:
        """Begins what was planned; `step` does it. The plan must be of the state that the sequence is in now."""
        self.cancel()
        if plan.action == "append":
            self.report = self._stock_report(plan)
        elif plan.action == "evaluate":
            self.clear()
            self.report = self.rule.annotate(self._stock_report(plan))
        else:
            if plan.action == "prefill":
                self.clear()
            self._plan, self._work = plan, self._slices(plan)

    def _slices(self, plan: Plan) -> Generator[None, None, PrefillReport]:
        late = self._late(plan)
        n_kept = plan.n_kept if late is None else late.n_held
        layers = self._layers(plan, n_kept, 0 if late is None else late.n_queries)
        yield  # contexts were made: on a small model that takes as long as a chunk
        report = yield from guarded_slices(
            layers,
            plan.new_tokens,
            self.policy,
            n_kept,
            guard=self.guard if late is None else Guard(None),
            n_most=plan.n_most,
            reason=plan.reason,
            protected=plan.protected,
            late=late,
        )
        if isinstance(late, PromptBudget) and self.guard.share is not None and report.pruned:
            report = replace(report, budget_choice=f"asl_guard: {late.choice}")
        return layers.corrected(report) if isinstance(layers, ReusingLayers) else report

    def _late(self, plan: Plan) -> LateBudget | None:
        """What is decided as the prompt is read, if anything. Nothing of a turn, whose attention the past shares."""
        if plan.action == "turn":
            return None
        n_tokens, n_protected = len(plan.tokens), 0 if plan.protected is None else plan.protected.size
        shape = context.model_shape(llama_cpp.llama_get_model(self.place.ctx))
        late = self.rule.late(n_tokens, plan.n_kept, n_protected, shape)
        if self.guard.share is not None and self.rule.fixed:
            n_most = self.guard.largest(plan.n_kept, plan.n_most)
            late = guarded_budget(self.policy, n_tokens, plan.n_kept, n_most, shape)
        if late is not None:  # rows in excess lie in cells of the answer
            late.n_held = max(plan.n_kept, min(late.n_held, self.place.n_cells, self.rule.n_cells))
        return late

    def _layers(self, plan: Plan, n_kept: int, n_queries: int) -> Layers:
        n_rows = plan.n_most if self.guard.share is not None else self._n_rows(len(plan.new_tokens), n_kept)
        if plan.action == "turn":
            return TurnLayers(self.place.open_turn(n_rows))
        session = self.place.open(n_rows)
        if self.source is not None:
            return self.source(session, plan)
        return ReusingLayers(session, self.host, n_queries) if self.host else session

    def step(self) -> bool:
        """Runs one slice, at most one chunk of one layer. Returns whether more is to do.

        Raises:
            PrefillCancelled: the progress callback returned False. After this and other errors of a prefill nothing is
                evaluated; after one of a turn, what was there before is.
        """
        if self._work is None or self._plan is None:
            return False
        try:
            next(self._work)
        except StopIteration as end:
            plan, self._plan, self._work = self._plan, None, None
            self._arrive(plan, end.value)
            return False
        except BaseException:
            self.cancel()
            raise
        return True

    @property
    def runs(self) -> bool:
        """Whether `step` has more to do."""
        return self._work is not None

    def run(self, plan: Plan) -> None:
        """`start` and all steps."""
        self.start(plan)
        while self.step():
            pass

    def cancel(self) -> None:
        """Gives up what is running, if anything. A turn's past stays."""
        if (
            self._work is not None and inspect.getgeneratorstate(self._work) == inspect.GEN_RUNNING
        ):  # a signal handler calls, within a slice
            raise StateError("expected the prompt that runs to end first, got another call within it")
        work, self._plan, self._work = self._work, None, None
        if work is not None:
            work.close()
            self.place.leave()

    def _arrive(self, plan: Plan, report: PrefillReport) -> None:
        self.place.arrive()
        info = self.place.info()
        turn = plan.action == "turn"
        self._turns = (*(self._turns if turn else ()), (report.prompt_tokens, report.kept_tokens))
        report = self.rule.annotate(report)
        if turn:
            report = of_whole_prompt(report, plan, info.n_cells_used, info.kv_bytes_cell)
        self.report = replace(
            report,
            turns=self._turns,
            kv_bytes_full=round_cells(self.n_ctx) * info.kv_bytes_cell,
            kv_bytes_resident=sum(context.resident_bytes(self.place.ctx)),
            calibration=self.calibration,
        )
        n_pruned = len(plan.tokens) if report.pruned or turn else 0
        unasked = turn and self.transcript.unasked
        self.transcript.set(plan.tokens, n_pruned=n_pruned, needs_eval=False)
        self.transcript.unasked = unasked
        logger.info(
            "prefill: kept %d of %d tokens, selection layer %s",
            report.kept_tokens, report.prompt_tokens, report.selection_layer,
        )  # fmt: skip

    def _stock_report(self, plan: Plan) -> PrefillReport:
        info, n_tokens = self.place.info(), len(plan.tokens)
        dropped = self.transcript.n_tokens and self.transcript.pruned
        report = stock_report(
            self.place.ctx,
            n_tokens=n_tokens,
            n_reused=plan.n_past,
            n_kept=info.n_cells_used + n_tokens - plan.n_past if dropped else n_tokens,
            n_ctx=self.n_ctx,
            info=info,
            policy=self.policy.name,
            budget=self.rule.kept(n_tokens),
            reason=plan.reason,
        )
        return replace(report, turns=self._turns, full_kv_bytes=self.host.n_bytes if self.host else 0)
