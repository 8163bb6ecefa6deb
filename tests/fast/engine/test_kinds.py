"""One small model of each kind of attention: nothing pruned is stock, selection and pruning work, states and shared K/V follow."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from asl_gguf.cli import main
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Replay, record
from asl_gguf.errors import NativeError, OptionError
from asl_gguf.native import moving
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.policies import make_policy
from ggml_tensor import Tensor
from harness import Context, Model, Options, assert_same
from sequences import Sequences
from tiny_kinds import KINDS, loaded_kind, write_kind

N_TOKENS, N_KEPT, WINDOW = 100, 40, 8
ANSWER = [70, 71, 72]
ROWS_ONLY = ("lightning",)
"""kinds whose states decay by position"""
STATES = (
    "delta-net",
    "lightning",
    "mamba",
    "mamba2",
    "mamba2-beside",
    "mamba-renamed",
    "kda",
    "short-conv",
    "checkpoints",
)
SHARED = ("shared-kv", "streams")
NOT_MOVED = ("alibi",)
"""kinds whose rows belong to their cells"""


def prompt(seed: int = 0, n_tokens: int = N_TOKENS) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(0, 128, n_tokens).tolist()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    with loaded_kind(tmp_path_factory.mktemp("kinds"), kind) as loaded:
        yield loaded


def stock_logits(context: Context, tokens: list[int]) -> list[np.ndarray]:
    context.prefill(tokens)
    return context.continuation(ANSWER)


def test_every_kind_is_here():
    assert {*STATES, *SHARED, "mla", "soft-cap", "m-rope", "mtp", "alibi", "sparse", "sparse-sliding"} <= set(KINDS)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
def test_nothing_pruned_is_stock(model, flash):
    """Two prompts in one context: what the first left behind must not show in the second."""
    options = Options(n_ctx=256, n_batch=48, n_ubatch=32, flash=flash)
    with model.context(options) as stock, model.context(options) as ours:
        session = ours.session()
        for seed in (0, 1):
            prefill(session, prompt(seed), make_policy("none"), N_TOKENS)
            assert_same(ours.continuation(ANSWER), stock_logits(stock, prompt(seed)), f"prompt {seed}")


@pytest.mark.long
def test_keeping_all_tokens_at_each_layer_is_stock(model):
    options = Options(n_ctx=256, n_batch=64, n_ubatch=32)
    with model.context(options) as stock, model.context(options) as ours:
        session, expected = ours.session(), stock_logits(stock, prompt())
        for at in range(model.n_layer - 1):
            session.begin(prompt(), WINDOW)
            for layer in range(at + 1):
                session.run(1, not session.sliding[layer])
                if not session.sliding[layer]:
                    session.keep_rows(None)
            session.keep_tokens(np.arange(N_TOKENS))
            session.finish()
            assert_same(ours.continuation(ANSWER), expected, f"layer {at}")


def pruned_logits(model: Model, n_batch: int, n_ubatch: int) -> tuple[list[np.ndarray], object]:
    with model.context(Options(n_ctx=256, n_batch=n_batch, n_ubatch=n_ubatch)) as ours:
        session = ours.session()
        policy = make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}")
        report = prefill(session, prompt(), policy, N_KEPT)
        return ours.continuation(ANSWER), report


@pytest.mark.long
def test_pruned_prompts_do_not_depend_on_chunks(model, kind):
    first, report = pruned_logits(model, 64, 64)
    for chunks in ((48, 32), (128, 128)):
        other, _ = pruned_logits(model, *chunks)
        for a, b in zip(first, other, strict=True):
            assert np.abs(a - b).max() < 0.02 * a.std()
    assert report.pruned and report.kept_tokens == N_KEPT
    assert report.rows_only is (kind in ROWS_ONLY)
    assert (report.state_bytes > 0) is (kind in STATES)
    itself = set(report.sliding_layers)
    assert all(n == N_KEPT for layer, n in enumerate(report.rows_by_layer) if layer not in itself)


def test_hidden_states_hold_all_that_goes_on(model, kind):
    with model.context(Options(n_ctx=256)) as ours:
        session = ours.session()
        session.begin(prompt(), WINDOW)
        session.run(1, False)
        hidden = session.save_hidden(0, N_TOKENS)
        session.abort()
    n_rows = {"streams": 4, "carried": 2, "checkpoints": 4}.get(kind, 1)
    assert hidden.shape == (N_TOKENS, n_rows * llama_cpp.llama_model_n_embd(model.handle))
    rows = hidden.reshape(N_TOKENS, n_rows, -1)
    n_used = n_rows if kind == "streams" else 1  # nothing is carried beside the first layer's output
    assert len(np.unique(rows[0, :n_used], axis=0)) == n_used and np.isfinite(rows[:, :n_used]).all()


def stock_attention(model: Model, layer: int) -> np.ndarray:
    """float32 [n_head, n_tokens, n_kv]: the soft max of one layer, as llama.cpp computes it over the whole prompt at once."""
    seen: list[np.ndarray] = []

    @llama_cpp.ggml_backend_sched_eval_callback
    def look(pointer, ask, _data):
        tensor = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        if tensor.name.decode() != f"kq_soft_max-{layer}":
            return not ask
        if not ask:
            shape = tuple(tensor.ne)[2::-1]
            values = ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float))
            seen.append(np.ctypeslib.as_array(values, shape).copy())
        return True

    with model.context(Options(n_ctx=256, n_batch=128, n_ubatch=128)) as context:
        params = context.params
        params.cb_eval = look
        handle = llama_cpp.llama_init_from_model(model.handle, params)
        ids = (ctypes.c_int32 * N_TOKENS)(*prompt())
        assert llama_cpp.llama_decode(handle, llama_cpp.llama_batch_get_one(ids, N_TOKENS)) == 0
        llama_cpp.llama_free(handle)
    return seen[0]


def test_scores_are_those_of_stocks_attention(model):
    """Of the first layer that is asked about: soft caps, latent keys and positions of several dimensions included."""
    with model.context(Options(n_ctx=256, n_batch=128, n_ubatch=128)) as ours:
        session = ours.session()
        layer = session.sliding.index(False)
        session.begin(prompt(), WINDOW)
        if layer > 0:
            session.run(layer, False)
        session.run(1, True)
        scores = session.scores()
        session.abort()
    attention = stock_attention(model, layer)[:, -WINDOW:, :N_TOKENS]
    expected = attention.sum(axis=1).reshape(len(scores), -1, N_TOKENS).sum(axis=1)
    assert np.allclose(scores, expected, rtol=1e-3, atol=1e-4)
    assert scores.std() > 0.01  # an attention that is uniform would show nothing


@pytest.mark.long
def test_a_recorded_prompt_replays(model, kind):
    if kind in ROWS_ONLY:
        pytest.skip("no tokens are dropped")
    with model.context(Options(n_ctx=256)) as ours:
        session = ours.session()
        policy = make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}")
        prefill(session, prompt(), policy, N_KEPT)
        expected = ours.continuation(ANSWER)
        replay = Replay(session, record(session, prompt(), policy.window))
        prefill(replay, prompt(), policy, N_KEPT)
        assert_same(ours.continuation(ANSWER), expected)


def test_a_saved_state_goes_on(model, kind):
    """llama.cpp's state of a pruned prompt holds cells and recurrent states; not where rows stand (test_alibi.py)."""
    if kind in NOT_MOVED:
        pytest.skip("llama.cpp's state alone does not hold it")
    with model.context(Options(n_ctx=256)) as ours, model.context(Options(n_ctx=256)) as other:
        session = ours.session()
        prefill(session, prompt(), make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}"), N_KEPT)
        state = ours.get_state()
        expected = [ours.decode([token]) for token in ANSWER]
        other.set_state(state)
        assert_same([other.decode([token]) for token in ANSWER], expected)


@pytest.mark.long
def test_a_pruned_prompt_moves_beside_another(model, kind):
    """Into a stream of its own, where it answers as it does alone; out of it again, with its state, as it is by then."""
    own, shared = Options(n_ctx=256), Options(n_ctx=512, n_seq_max=2)
    with model.context(own) as ours, model.context(shared) as target:
        session = ours.session()
        prefill(session, prompt(), make_policy(f"fastkv:tsp_layer={session.sliding.index(False)}"), N_KEPT)
        live = Sequences(target)
        live.decode(0, prompt(1, 30))
        if kind in NOT_MOVED:
            with pytest.raises(OptionError, match="a model without ALiBi"):
                moving.move(ours.handle, target.handle, 1)
            return
        moving.move(ours.handle, target.handle, 1)
        found = []
        for token in ANSWER:
            found.append(live.decode(1, [token]))
            live.decode(0, [token])
        assert_same(found, [ours.decode([token]) for token in ANSWER])
        other = model.context(own)
        moving.move(target.handle, other.handle, 0, with_logits=False, source_id=1)
        assert_same([other.decode([80])], [ours.decode([80])])
        other.close()


@pytest.mark.long
def test_what_an_earlier_prompt_remembers_takes_the_place_of_its_tokens(model, kind):
    """Rows and states of each layer are loaded; what follows is decoded bit for bit as after them."""
    options, more = Options(n_ctx=256, n_batch=48, n_ubatch=32), prompt(1, 50)
    with model.context(options) as stock, model.context(options) as ours:
        stock.prefill(prompt())
        stock.decode(more)
        expected, session, kept = stock.continuation(ANSWER), ours.session(), []
        session.begin(prompt(), WINDOW)
        for layer in range(model.n_layer):
            session.run(1, False)
            rows = session.save_rows(0, N_TOKENS) if session.row_bytes(layer) else None
            kept.append((rows, session.save_state(N_TOKENS) if session.state_size(layer) else None))
        assert any(state is not None for _, state in kept) is (kind in STATES)
        session.begin([*prompt(), *more], WINDOW)
        session.set_past(N_TOKENS)
        for layer, (rows, state) in enumerate(kept):
            if state is not None or rows is not None:
                with pytest.raises(NativeError, match="asl_session_load_rows, asl_session_load_state"):
                    session.run(1, False)
            if rows is not None:
                session.load_rows(rows)
            if state is not None:
                session.load_state(state)
            session.run(1, False)
            if not session.sliding[layer]:
                session.keep_rows(None)
        session.finish()
        assert_same(ours.continuation(ANSWER), expected)


def test_states_within_a_prompt(model, kind):
    """Noted at ends of chunks, which stay where they are, they are those of a shorter prompt."""
    if kind not in STATES:
        pytest.skip("no states")
    with model.context(Options(n_ctx=256, n_batch=48, n_ubatch=32)) as ours, model.context(Options(n_ctx=256)) as other:
        session, shorter = ours.session(), other.session()
        session.begin(prompt(), WINDOW)
        session.set_state_ends([48, 80])
        noted: dict[int, list[bytes]] = {48: [], 80: [], N_TOKENS: []}
        for layer in range(model.n_layer):
            session.run(1, False)
            for end, states in noted.items():
                states.append(session.save_state(end).tobytes() if session.state_size(layer) else b"")
        for call, match in (
            (lambda: session.save_state(49), "expected all 100 current tokens, or a number of"),
            (
                lambda: session.set_state_ends([5, 5]),
                "expected increasing numbers of tokens from 1 to 99, got 5 at place 1",
            ),
            (lambda: session.load_state(np.empty(0, np.uint8)), "expected tokens that are not computed"),
        ):
            with pytest.raises((OptionError, NativeError), match=match):
                call()
        session.abort()
        for end, states in noted.items():
            shorter.begin(prompt()[:end], 1)
            for layer in range(model.n_layer):
                shorter.run(1, False)
                a, b = (np.frombuffer(s, np.float32) for s in (states[layer], shorter.save_state(end).tobytes()))
                np.testing.assert_allclose(a, b, atol=1e-3)
            shorter.abort()


def test_tokens_are_not_dropped_where_states_decay_by_position(model, kind):
    with model.context(Options(n_ctx=256)) as ours:
        session = ours.session()
        assert session.drops_tokens is (kind not in ROWS_ONLY)
        if session.drops_tokens:
            return
        session.begin(prompt(), WINDOW)
        session.run(1, False)
        with pytest.raises(NativeError, match="tokens cannot be dropped in this model"):
            session.keep_tokens(np.arange(N_TOKENS - WINDOW, N_TOKENS))
        session.abort()


def test_layers_without_attention_have_no_scores(model, kind):
    if kind not in STATES or kind == "mamba2-beside":
        pytest.skip("every layer attends")
    with model.context(Options(n_ctx=256)) as ours:
        session = ours.session()
        session.begin(prompt(), WINDOW)
        layer = session.sliding.index(True)
        for _ in range(layer):
            session.run(1, False)
        with pytest.raises(NativeError, match=f"layer {layer} has none"):
            session.run(1, True)
        session.abort()


@pytest.mark.long
def test_doctor_says_what_happens_to_prompts(kind, tmp_path_factory, capsys):
    path = write_kind(tmp_path_factory.mktemp("doctor") / "model.gguf", kind)
    assert main(["doctor", "-m", str(path)]) in (0, 1)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("model  "))
    assert "pruned: K/V of" in line and ("K/V rows alone" in line) is (kind in ROWS_ONLY)
    path.unlink()
