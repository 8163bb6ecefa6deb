"""Many conversations in one context: prefilled in slices while others decode, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from asl_gguf.budget import late
from asl_gguf.engine.place import OwnContext
from asl_gguf.engine.plan import Request
from asl_gguf.engine.sequence import Sequence
from asl_gguf.engine.transcript import Transcript
from asl_gguf.errors import ContextFullError, PrefillCancelled
from asl_gguf.native import moving
from asl_gguf.native.context import model_shape
from asl_gguf.policies import Policy, SnapKV
from conversations import N_CTX, SETTLES, make_rule, make_sequence
from harness import Options, assert_same, prompt
from sequences import Sequences

N_CELLS = 1024
CHUNK = 64
A, B, C, D = range(4)
OTHERS = {A: prompt(70, seed=11), C: prompt(41, seed=12)}
LONG = prompt(300, seed=1)
POLICIES = {"asl-span": SETTLES, "snapkv": SnapKV(window=16)}

with_cache = pytest.mark.parametrize(
    "shared_options",
    [
        Options(n_ctx=N_CELLS, n_seq_max=4, unified=True),
        Options(n_ctx=4 * N_CTX, n_seq_max=4, unified=False),
        Options(n_ctx=N_CELLS, n_seq_max=4, unified=True, flash=True),
    ],
    ids=["unified", "streams", "flash"],
)
with_model = pytest.mark.parametrize("architecture", ["llama", "gemma3"])


@pytest.fixture
def model(load_tiny, architecture):
    return load_tiny(architecture)


@pytest.fixture
def open_shared(model, shared_options) -> Iterator[Callable[[], Sequences]]:
    """`open_shared()`: a context in which A and C have read their prompts."""
    contexts = []

    def make() -> Sequences:
        contexts.append(model.context(shared_options))
        live = Sequences(contexts[-1])
        for seq, tokens in OTHERS.items():
            live.decode(seq, tokens)
        return live

    yield make
    for context in contexts:
        context.close()


class Talk:
    """Greedy decoding of A and C in turn, one token at a time."""

    def __init__(self, live: Sequences) -> None:
        self.live = live
        self.next = {seq: tokens[-1] for seq, tokens in OTHERS.items()}
        self.logits: list[np.ndarray] = []

    def say(self) -> None:
        for seq in OTHERS:
            self.logits.append(self.live.decode(seq, [self.next[seq]]))
            self.next[seq] = int(self.logits[-1].argmax())


def prefill_unsliced(live: Sequences, seq_id: int, policy: Policy = SETTLES) -> tuple[bytes, np.ndarray]:
    sequence = make_sequence(live.context, seq_id, policy)
    sequence.run(sequence.plan(Request(LONG)))
    return live.plain_state(seq_id), live.context.logits()


@with_model
@with_cache
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_others_decode_between_slices(open_shared, policy):
    """They are byte for byte what they are where nothing is prefilled; what is prefilled is what it is unsliced."""
    live, alone, unsliced = open_shared(), open_shared(), open_shared()
    talk, undisturbed = Talk(live), Talk(alone)
    sequence = make_sequence(live.context, B, policy)
    plan = sequence.plan(Request(LONG))
    assert plan.action == "prefill"
    sequence.start(plan)
    n_slices = 0
    while sequence.step():
        n_slices += 1
        if n_slices % 4 == 0:
            talk.say()
            undisturbed.say()
    first = live.context.logits()
    n_chunks, n_layer = -(-len(LONG) // CHUNK), sequence.report.n_layer
    n_whole = n_layer if sequence.report.selection_layer is None else sequence.report.selection_layer + 1
    assert n_slices >= n_whole * (n_chunks - 1) and len(talk.logits) > 8
    assert_same(talk.logits, undisturbed.logits, "A and C")
    state, logits = prefill_unsliced(unsliced, B, policy)
    assert live.plain_state(B) == state
    assert_same([first], [logits], "B's first logits")
    for seq in OTHERS:
        assert live.plain_state(seq) == alone.plain_state(seq)
    said = dict(talk.next)
    talk.say()
    undisturbed.say()
    assert talk.next == undisturbed.next != said  # with B's cells beside theirs, the likeliest tokens are the same


@with_model
@with_cache
def test_others_say_what_they_say_alone(open_shared, model, shared_options):
    """In a context of their own. In other cells sums run in another order, which shows in the logits' last bits
    (test_other_cells_are_another_order_of_sums), and not in the likeliest tokens."""
    live = open_shared()
    talk, said = Talk(live), {seq: [tokens[-1]] for seq, tokens in OTHERS.items()}
    sequence = make_sequence(live.context, B)
    sequence.start(sequence.plan(Request(LONG)))
    more, n_slices = True, 0
    while more or n_slices % 4:
        more, n_slices = more and sequence.step(), n_slices + 1
        if n_slices % 4 == 0:
            talk.say()
            for seq in OTHERS:
                said[seq].append(talk.next[seq])
    assert sequence.report.pruned
    for seq, tokens in OTHERS.items():
        with model.context(shared_options) as context:
            alone = Sequences(context)
            alone.decode(seq, tokens)
            found, _ = alone.greedy(seq, tokens[-1], len(said[seq]) - 1)
            assert found == said[seq] and len(found) > 4


@with_model
@with_cache
def test_a_cancelled_prefill_leaves_no_trace(open_shared, shared_options):
    """Each kind of context cancels in every third slice, and all three together in every one."""
    live = open_shared()
    before = {seq: live.state(seq) for seq in OTHERS}
    n_free = moving.free_cells(live.context.handle, B)
    sequence = make_sequence(live.context, B)
    n_slices = 3 if shared_options.flash else 1 if shared_options.unified else 2
    while True:
        sequence.start(sequence.plan(Request(LONG)))
        more = all(sequence.step() for _ in range(n_slices))
        if not more:
            break
        sequence.cancel()
        assert moving.free_cells(live.context.handle, B) == n_free and sequence.transcript.n_tokens == 0
        assert {seq: live.state(seq) for seq in OTHERS} == before
        n_slices += 3
    assert sequence.report.pruned and sequence.place.n_used == sequence.report.kept_tokens
    assert {seq: live.plain_state(seq) for seq in OTHERS}.keys() == before.keys()


@with_model
@with_cache
def test_two_prefills_share_the_time(open_shared):
    """And others decode between their slices, as where nothing is prefilled."""
    live, alone, unsliced = open_shared(), open_shared(), open_shared()
    talk, undisturbed = Talk(live), Talk(alone)
    state, _ = prefill_unsliced(unsliced, B)
    pair = [make_sequence(live.context, seq) for seq in (B, D)]
    for sequence in pair:
        sequence.start(sequence.plan(Request(LONG)))
    for _ in range(5):
        assert all(sequence.step() for sequence in pair)
        talk.say()
        undisturbed.say()
    assert_same(talk.logits, undisturbed.logits, "A and C")
    while sum(sequence.step() for sequence in pair):
        pass
    assert live.plain_state(B) == live.plain_state(D) == state
    assert {seq: live.plain_state(seq) for seq in OTHERS} == {seq: alone.plain_state(seq) for seq in OTHERS}


@with_model
@with_cache
def test_of_two_prefills_one_is_cancelled(open_shared):
    """The other is what it is by itself, and the cells of the cancelled one are free."""
    live, unsliced = open_shared(), open_shared()
    state, logits = prefill_unsliced(unsliced, B)
    others = {seq: live.plain_state(seq) for seq in OTHERS}
    for n_slices in (1, 4, 9):
        going, cancelled = (make_sequence(live.context, seq) for seq in (B, D))
        for sequence in (going, cancelled):
            sequence.start(sequence.plan(Request(LONG)))
        for _ in range(n_slices):
            assert going.step() and cancelled.step()
        cancelled.cancel()
        while going.step():
            pass
        assert live.plain_state(B) == state and not live.plain_state(D)
        assert_same([live.context.logits()], [logits])
        assert {seq: live.plain_state(seq) for seq in OTHERS} == others
        assert moving.free_cells(live.context.handle, B) == moving.free_cells(unsliced.context.handle, B)


@with_cache
@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize("summary, layer", [((-2, -1), 2), ((2, 3), 3)], ids=["found", "all-of-it"])
def test_the_layer_is_chosen_as_in_a_context_of_its_own(open_shared, model, monkeypatch, summary, layer):
    """Rows in excess are in the private context while the prompt is read; the shared one gets the budget's."""
    found = (-2, -1) if layer == 2 else (2, 3)
    thresholds = late.Thresholds(2, 3, document=2, found=found, chained=(2, 3), summary=summary)
    monkeypatch.setitem(late.CALIBRATED, model_shape(model.handle), thresholds)
    monkeypatch.setattr(late, "_FEW", 90)  # the prompt is short
    live = open_shared()
    with model.context(Options(n_ctx=N_CELLS, flash=live.context.options.flash)) as own_context:
        own = Sequence(OwnContext(own_context.handle, own_context.session(N_CTX)), make_rule(), Transcript(N_CTX))
        shared = make_sequence(live.context, B)
        for sequence in (own, shared):
            sequence.run(sequence.plan(Request(LONG)))
            assert sequence.report.selection_layer == layer and set(sequence.report.rows_by_layer) == {90}
            assert sequence.place.n_used == 90
        assert own.report.selected == shared.report.selected
        assert_same(own_context.logits(), live.context.logits())


@with_model
@with_cache
def test_turns(open_shared, model):
    """A long turn is pruned over what its conversation keeps, in a shared context as in one of its own."""
    live = open_shared()
    with model.context(Options(n_ctx=N_CELLS, flash=live.context.options.flash)) as context:
        own = Sequence(OwnContext(context.handle, context.session(N_CTX)), make_rule(), Transcript(N_CTX))
        shared = make_sequence(live.context, B)
        first, answer = LONG[:200], prompt(5, seed=3)
        later = [*first, *answer, *prompt(120, seed=4)]
        for sequence, decode in ((own, context.decode), (shared, lambda tokens: live.decode(B, tokens))):
            sequence.run(sequence.plan(Request(first)))
            decode(answer)
            sequence.transcript.append(answer)
            plan = sequence.plan(Request(later))
            assert (plan.action, plan.n_past, plan.n_kept) == ("turn", 205, 36)
            sequence.run(plan)
            report = sequence.report
            assert report.turns == ((200, 60), (120, 36)) and report.kept_tokens == 60 + 5 + 36
            assert report.prompt_tokens == len(later) and report.reused_tokens == 205
            assert sequence.place.n_used == 101 and sequence.transcript.pruned == tuple(later)
        assert own.report.selected == shared.report.selected
        if model is not None and not live.context.options.flash:
            np.testing.assert_allclose(live.context.logits(), context.logits(), atol=5e-3)
        small = [*later, *prompt(20, seed=5)]
        assert shared.plan(Request(small)).action == own.plan(Request(small)).action == "append"
        other = [*first[:-1], first[-1] ^ 1, *later[200:]]
        assert shared.plan(Request(other)).action == own.plan(Request(other)).action == "prefill"


@pytest.mark.parametrize("architecture", ["llama"])
@with_cache
def test_a_cancelled_turn_keeps_the_past(open_shared):
    live = open_shared()
    sequence = make_sequence(live.context, B)
    sequence.run(sequence.plan(Request(LONG[:200])))
    before, tokens = live.state(B), sequence.transcript.evaluated()
    later = [*LONG[:200], *prompt(120, seed=4)]
    for n_slices in (1, 5, 8):
        sequence.start(sequence.plan(Request(later)))
        for _ in range(n_slices):
            assert sequence.step()
        sequence.cancel()
        assert live.state(B) == before and sequence.transcript.evaluated() == tokens
    sequence.run(sequence.plan(Request(later)))
    assert sequence.report.turns == ((200, 60), (120, 36))


@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize("shared_options", [Options(n_ctx=256, n_seq_max=4, unified=True)], ids=["unified"])
def test_out_of_cells(open_shared):
    live = open_shared()  # 111 of 256 cells are taken
    sequence = make_sequence(live.context, B)
    with pytest.raises(ContextFullError, match="expected at most 145 KV cells .* got 150"):
        Sequence(sequence.place, make_rule(budget=0.5), Transcript(N_CTX)).plan(Request(LONG))
    sequence.start(sequence.plan(Request(LONG)))
    assert sequence.step()
    live.decode(A, prompt(60, seed=5))  # takes what the plan counted on
    with pytest.raises(ContextFullError, match="free"):
        while sequence.step():
            pass
    assert sequence.transcript.n_tokens == 0 and sequence.place.n_used == 0
    live.remove(A)
    sequence.run(sequence.plan(Request(LONG)))
    assert sequence.place.n_used == 90


@pytest.mark.parametrize("architecture", ["llama"])
@pytest.mark.parametrize("shared_options", [Options(n_ctx=N_CELLS, n_seq_max=4, unified=True)], ids=["unified"])
def test_progress_cancels(open_shared):
    live = open_shared()
    sequence = make_sequence(live.context, B, progress=lambda done, total: done < total / 2)
    sequence.start(sequence.plan(Request(LONG)))
    with pytest.raises(PrefillCancelled):
        while sequence.step():
            pass
    assert sequence.transcript.n_tokens == 0 and not sequence.step()
