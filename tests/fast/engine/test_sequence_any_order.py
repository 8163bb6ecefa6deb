"""Prompts of many conversations in one context, in any order: a model of their cells says what is free."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from asl_gguf.engine.plan import Request
from asl_gguf.errors import ContextFullError
from asl_gguf.native import moving
from conversations import N_CTX, make_sequence
from harness import Context, Options, prompt
from sequences import Sequences


class Conversations(RuleBasedStateMachine):
    """Prompts begin, step, end, are cancelled and removed, and all decode, in one context; a model counts their cells."""

    shared: Context

    @initialize()
    def begin(self) -> None:
        self.shared.clear()
        self.live = Sequences(self.shared)
        self.sequences = [make_sequence(self.shared, seq) for seq in range(4)]
        self.running: set[int] = set()
        self.cells = [0] * 4
        self.n_tokens = [0] * 4

    @rule(seq=st.integers(0, 3), n_tokens=st.integers(40, 150), seed=st.integers(0, 2))
    def prompt(self, seq: int, n_tokens: int, seed: int) -> None:
        if seq in self.running:
            return
        sequence = self.sequences[seq]
        tokens = prompt(n_tokens, seed=10 * seed + seq + 100)
        try:
            plan = sequence.plan(Request(tokens))
        except ContextFullError:
            assert self.free + self.cells[seq] <= 0.3 * n_tokens + 1
            return
        if plan.action == "prefill":
            sequence.start(plan)
            self.running.add(seq)
            self.cells[seq] = self.n_tokens[seq] = 0

    @rule(seq=st.integers(0, 3), n_steps=st.integers(1, 30))
    def step(self, seq: int, n_steps: int) -> None:
        sequence = self.sequences[seq]
        for _ in range(n_steps if seq in self.running else 0):
            try:
                if sequence.step():
                    continue
                self.cells[seq], self.n_tokens[seq] = sequence.report.kept_tokens, sequence.transcript.n_tokens
            except ContextFullError:
                assert sequence.transcript.n_tokens == 0
            self.running.discard(seq)
            return

    @rule(seq=st.integers(0, 3))
    def cancel(self, seq: int) -> None:
        self.sequences[seq].cancel()
        self.running.discard(seq)

    @rule(seq=st.integers(0, 3), token=st.integers(10, 200))
    def decode(self, seq: int, token: int) -> None:
        if seq not in self.running and self.cells[seq] and self.free > 0 and self.n_tokens[seq] < N_CTX - 1:
            self.live.decode(seq, [token])
            self.sequences[seq].transcript.append([token])
            self.cells[seq] += 1
            self.n_tokens[seq] += 1

    @precondition(lambda self: any(self.cells))
    @rule(seq=st.integers(0, 3))
    def remove(self, seq: int) -> None:
        if seq not in self.running:
            self.sequences[seq].clear()
            self.cells[seq] = self.n_tokens[seq] = 0

    @property
    def free(self) -> int:
        return self.shared.options.n_ctx - sum(self.cells)

    def teardown(self) -> None:
        for seq, sequence in enumerate(self.sequences):
            sequence.cancel()
            assert sequence.place.n_used == self.cells[seq], seq
            assert sequence.transcript.n_tokens == self.n_tokens[seq], seq
            assert len(self.live.plain_state(seq)) > 0 or not self.cells[seq]
        assert moving.free_cells(self.shared.handle, 0) == self.free


def test_any_order(load_tiny):
    with load_tiny("llama").context(Options(n_ctx=256, n_seq_max=4, unified=True)) as shared:
        machine = type("Machine", (Conversations,), {"shared": shared})
        run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None))
