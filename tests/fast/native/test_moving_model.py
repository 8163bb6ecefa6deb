"""Sequences that are moved into a context, decode, lose tails and go: against a simple model of its cells."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asl_gguf.errors import ContextFullError, OptionError
from asl_gguf.native import moving
from harness import Model, Options, prompt
from sequences import Sequences, plain_state

OWN = Options(n_ctx=256, n_batch=64, n_ubatch=64, flash=True)
SHARED = Options(n_ctx=512, n_batch=64, n_ubatch=64, flash=True, n_seq_max=3)
WINDOW = 4
sequences = st.integers(0, 2)


class Pool(RuleBasedStateMachine):
    """What each sequence must hold: its positions, and its rows as they were last seen."""

    model: Model
    options: Options

    def __init__(self) -> None:
        super().__init__()
        self.own = self.model.context(OWN)
        self.shared = self.model.context(self.options)
        self.live = Sequences(self.shared)
        self.positions: dict[int, list[int]] = {seq: [] for seq in range(3)}
        self.rows: dict[int, bytes] = {}

    def teardown(self) -> None:
        self.own.close()
        self.shared.close()

    @initialize()
    def begin(self) -> None:
        self.see(*range(3))

    def see(self, *changed: int) -> None:
        for seq in changed:
            self.rows[seq] = plain_state(self.live.state(seq))

    def n_free(self, seq: int) -> int:
        used = self.positions.values() if self.options.unified else [self.positions[seq]]
        return self.shared.options.n_ctx // (1 if self.options.unified else 3) // 256 * 256 - sum(map(len, used))

    @rule(seq=sequences, n_tokens=st.integers(WINDOW + 2, 250), n_kept=st.integers(WINDOW, 120), seed=st.integers(0, 9))
    def move(self, seq: int, n_tokens: int, n_kept: int, seed: int) -> None:
        """A prompt of which the first tokens and the window are kept."""
        n_kept = min(n_kept, n_tokens)
        kept = [*range(n_kept - WINDOW), *range(n_tokens - WINDOW, n_tokens)]
        session = self.own.session()
        session.begin(prompt(n_tokens, seed), WINDOW)
        session.run(1, False)
        session.keep_rows(kept)
        session.keep_tokens(kept)
        session.finish()
        source = plain_state(self.own.get_state())
        if self.positions[seq] or self.n_free(seq) < n_kept:
            error = OptionError if self.positions[seq] else ContextFullError
            with pytest.raises(error):
                moving.move(self.own.handle, self.shared.handle, seq)
            return
        moving.move(self.own.handle, self.shared.handle, seq)
        self.positions[seq] = kept
        self.see(seq)
        assert self.rows[seq] == source

    @rule(seq=sequences, n_tokens=st.integers(1, 40))
    def decode(self, seq: int, n_tokens: int) -> None:
        if self.n_free(seq) < n_tokens:
            return
        first = self.live.next_pos(seq)
        self.live.decode(seq, prompt(n_tokens))
        self.positions[seq] = sorted([*self.positions[seq], *range(first, first + n_tokens)])
        self.see(seq)

    @rule(seq=sequences, n_left=st.integers(0, 60))
    def remove(self, seq: int, n_left: int) -> None:
        """A tail, or all."""
        begin = self.positions[seq][n_left] if n_left < len(self.positions[seq]) else None
        if begin is None:
            return
        self.live.remove(seq, begin if n_left else -1)
        self.positions[seq] = self.positions[seq][:n_left]
        self.see(seq)

    @invariant()
    def cells_are_those_of_the_model(self) -> None:
        for seq, positions in self.positions.items():
            assert moving.free_cells(self.shared.handle, seq) == self.n_free(seq)
            assert sorted(self.live.positions(seq)) == positions
            assert plain_state(self.live.state(seq)) == self.rows[seq]


@pytest.mark.long
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_cells(load_tiny, unified):
    options = SHARED if unified else Options(**{**vars(SHARED), "n_ctx": 768})
    Machine = type(
        "Machine", (Pool,), {"model": load_tiny("llama"), "options": Options(**{**vars(options), "unified": unified})}
    )
    run_state_machine_as_test(Machine, settings=settings(max_examples=25, stateful_step_count=15, deadline=None))
