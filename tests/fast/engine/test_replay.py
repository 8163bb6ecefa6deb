"""Layers saved, loaded and replayed are layers run: the same bytes, scores, reports and logits."""

from __future__ import annotations

import numpy as np
import pytest

from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Records, Replay, record, rescored
from asl_gguf.errors import NativeError, OptionError
from asl_gguf.policies import ASL, SnapKV, SpanASL, StreamingLLM
from harness import F16, F32, KV_NAMES, Q8_0, Context, Options, assert_same, prompt
from prefills import POLICIES, WINDOW, untimed

N_CTX = 512
N_TOKENS = 170
N_KEPT = 70
N_LAYER = 6
ANSWER = [70, 71]
TOKENS = prompt(N_TOKENS)
OPTIONS = {
    f"{'flash' if flash else 'plain'}-{KV_NAMES[kv]}": Options(n_ctx=256, n_batch=40, n_ubatch=24, flash=flash, kv=kv)
    for flash, kv in ((False, F16), (True, Q8_0), (False, F32))
}

with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def context(load_tiny):
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as context:
        yield context


@pytest.mark.long
@with_options
def test_every_policy_replayed_is_the_policy_run(load_tiny, options):
    """One recording for all of them, in one session."""
    model = load_tiny("llama")
    with model.context(options) as context, model.context(options) as other:
        plain, session = context.session(N_CTX), other.session(N_CTX)
        recording = record(session, TOKENS, WINDOW)
        assert session.info().n_cells_used == session.info().n_tokens == 0
        for name, policy in POLICIES.items():
            expected = prefill(plain, TOKENS, policy, N_KEPT)
            logits = context.continuation(ANSWER)
            replayed = prefill(Replay(session, recording), TOKENS, policy, N_KEPT)
            assert untimed(replayed) == untimed(expected), name
            assert_same(other.continuation(ANSWER), logits, name)


@with_options
def test_other_windows_take_the_same_pass(load_tiny, options):
    """Byte for byte a pass of their own, at a fraction of its work."""
    with load_tiny("llama").context(options) as context:
        session, calls = context.session(N_CTX), []
        n_past = 3 * options.n_batch
        recording = record(session, TOKENS, WINDOW, n_past=n_past)
        session.set_progress(lambda *call: calls.append(call))
        weights = np.linspace(0.5, 1.0, 12, dtype=np.float32)
        for window, factors in ((12, None), (12, weights), (N_TOKENS - n_past, None), (1, None)):
            expected = record(session, TOKENS, window, factors)
            calls.clear()
            again = rescored(session, recording, window, factors)
            assert calls[-1] == ((N_TOKENS - n_past) * N_LAYER,) * 2
            assert (again.tokens, again.window) == (expected.tokens, expected.window)
            for ours, own in zip(again.layers, expected.layers, strict=True):
                assert np.array_equal(ours.scores, own.scores) and np.array_equal(ours.queries, own.queries)
                assert np.array_equal(ours.state, own.state)


@with_options
def test_records_run_a_prompt_once(load_tiny, options):
    policies = [
        SpanASL(window=32),
        ASL(window=16, min_layer=2, obs_layers=2, tau=2),
        SnapKV(window=8),
        SnapKV(window=90),
    ]
    with load_tiny("llama").context(options) as context, load_tiny("llama").context(options) as other:
        session, plain, done = context.session(N_CTX), other.session(N_CTX), []
        records = Records(session, TOKENS)
        assert records.n_passes([(policy, 91) for policy in policies]) == 2
        assert records.n_passes([(policies[-1], 91)]) == records.n_passes([(StreamingLLM(), 91)]) == 1
        session.set_progress(lambda now, total: done.append((now, total)))
        work = []
        for policy in policies:
            done.clear()
            replay = records.replay_for(policy, 91)
            work.append(done[-1][1])
            expected = prefill(plain, TOKENS, policy, 91)
            assert untimed(prefill(replay, TOKENS, policy, 91)) == untimed(expected)
            assert_same(context.continuation(ANSWER), other.continuation(ANSWER))
        whole, tail = N_TOKENS * N_LAYER, (N_TOKENS - 120) * N_LAYER
        assert work == [whole, tail, tail, whole]  # a window beyond the last chunks takes a pass of its own


def test_protected_tokens_and_policies_that_are_asked_for_nothing(context, load_tiny):
    protected = np.arange(3, 60, 2, dtype=np.int32)
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as other:
        plain, session = context.session(N_CTX), other.session(N_CTX)
        recording = record(session, TOKENS, WINDOW)
        for n_kept, options in ((N_KEPT, {"protected": protected}), (N_TOKENS, {"always_ask": True})):
            expected = prefill(plain, TOKENS, POLICIES["asl-selects"], n_kept, **options)
            replayed = prefill(Replay(session, recording), TOKENS, POLICIES["asl-selects"], n_kept, **options)
            assert untimed(replayed) == untimed(expected)
            assert_same(other.continuation(ANSWER), context.continuation(ANSWER))


def test_a_replay_runs_no_layer_that_is_recorded(context):
    """SnapKV under the recorded window takes all from the record: not one token-layer of work but the loading."""
    session = context.session(N_CTX)
    recording, calls = record(session, TOKENS, WINDOW), []
    session.set_progress(lambda *call: calls.append(call))
    prefill(Replay(session, recording), TOKENS, SnapKV(window=WINDOW), N_KEPT)
    assert not calls
    prefill(Replay(session, recording), TOKENS, SnapKV(window=16), N_KEPT)
    assert calls


def test_another_prompt_simply_runs(context, load_tiny):
    session = context.session(N_CTX)
    replay = Replay(session, record(session, TOKENS, WINDOW))
    with load_tiny("llama").context(OPTIONS["plain-f16"]) as other:
        for tokens in (prompt(N_TOKENS, seed=1), TOKENS[:-1], [*TOKENS, 5], TOKENS):
            expected = prefill(other.session(N_CTX), tokens, POLICIES["asl-selects"], N_KEPT)
            assert untimed(prefill(replay, tokens, POLICIES["asl-selects"], N_KEPT)) == untimed(expected)
            assert_same(context.continuation(ANSWER), other.continuation(ANSWER))


def test_a_recording(context):
    session = context.session(N_CTX)
    recording = record(session, prompt(20), WINDOW)
    assert recording.tokens == tuple(prompt(20)) and recording.window == 20 and len(recording.layers) == N_LAYER
    for layer in recording.layers:
        assert layer.scores.shape == (2, 20) and layer.queries.shape == (20, 4, 32)
    sizes = [part.nbytes for layer in recording.layers for part in (layer.state, layer.scores, layer.queries)]
    assert recording.n_bytes == sum(sizes)


def run_and_save(context: Context) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Bytes, scores and keys of every layer; the prefill stays open."""
    session, found = context.session(N_CTX), ([], [], [])
    session.begin(TOKENS, WINDOW)
    for _ in range(N_LAYER):
        session.run(1, True)
        session.keep_rows(None)
        for values, value in zip(found, (session.save_layer(), session.scores(), session.keys())):
            values.append(value)
    session.finish()
    return found


@with_options
def test_a_loaded_layer_is_the_layer(load_tiny, options):
    """Into another context: rows, keys, the next layer's scores and bytes, the logits after the last one."""
    model = load_tiny("llama")
    with model.context(options) as context, model.context(options) as other:
        saved, scores, keys = run_and_save(context)
        session = other.session(N_CTX)
        for layer in range(N_LAYER - 1):  # each one loaded into a prefill of its own, the next one run
            session.begin(TOKENS, WINDOW)
            session.load_layer(layer, saved[layer])
            assert session.info().next_layer == layer + 1
            assert np.array_equal(session.keys(), keys[layer])
            assert np.array_equal(session.save_layer(), saved[layer])
            session.run(1, True)
            assert np.array_equal(session.scores(), scores[layer + 1])
            assert np.array_equal(session.save_layer(), saved[layer + 1])
        session.begin(TOKENS, WINDOW)
        for layer in range(N_LAYER):
            session.load_layer(layer, saved[layer])
            session.keep_rows(None)
        session.finish()
        assert other.get_state() == context.get_state()
        assert_same(other.continuation(ANSWER), context.continuation(ANSWER))


def test_what_a_loaded_layer_lacks(context):
    """Scores, and rows of the layers that were jumped over."""
    saved = run_and_save(context)[0]
    session = context.session(N_CTX)
    session.begin(TOKENS, WINDOW)
    session.load_layer(2, saved[2])
    for read in (session.scores, session.queries):
        with pytest.raises(NativeError, match="has no scores; run it with_scores"):
            read()
    session.keep_rows(None)
    session.load_layer(5, saved[5])
    with pytest.raises(NativeError, match="expected every layer to keep rows, layer 0 kept none"):
        session.finish()
    with pytest.raises(NativeError, match="expected a layer that has not run"):
        session.load_layer(5, saved[5])


def test_only_whole_prompts_are_saved_and_loaded(context, load_tiny):
    """With all tokens, of the same number and cache type; what is refused leaves the prefill as it was."""
    saved = run_and_save(context)[0]
    expected = context.continuation(ANSWER)
    session = context.session(N_CTX)
    session.begin(TOKENS[:-1], WINDOW)
    with pytest.raises(OptionError, match=rf"expected a buffer of \d+ bytes, got {saved[0].size}"):
        session.load_layer(0, saved[0])
    session.begin(TOKENS, WINDOW)
    with pytest.raises(OptionError, match=rf"expected a buffer of \d+ bytes, got {saved[5].size}"):
        session.load_layer(4, saved[5])  # after the last layer, one row of hidden states is left
    for wrong in (saved[0].view(np.int8), saved[0][None], saved[0].astype(np.float32)):
        with pytest.raises(OptionError, match=r"saved: expected bytes \(uint8 \[n\]\), got"):
            session.load_layer(0, wrong)
    doubled = np.repeat(saved[0], 2)
    session.load_layer(0, doubled[::2])  # bytes that lie apart
    session.keep_rows(None)
    for _ in range(1, N_LAYER):
        session.run(1, False)
        session.keep_rows(None)
    session.finish()
    assert_same(context.continuation(ANSWER), expected)

    session.begin(TOKENS, WINDOW)
    session.run(1, False)
    session.keep_tokens(np.arange(100, N_TOKENS))
    with pytest.raises(NativeError, match="expected all 170 tokens to be current, 70 are left"):
        session.save_layer()
    with pytest.raises(NativeError, match="expected a layer .* no token dropped; .* 70 of 170 tokens are current"):
        session.load_layer(1, saved[1])
    with load_tiny("llama").context(OPTIONS["flash-q8_0"]) as other:
        quantised = other.session(N_CTX)
        quantised.begin(TOKENS, WINDOW)
        with pytest.raises(OptionError, match="expected a buffer of"):
            quantised.load_layer(0, saved[0])


def test_saving_before_the_first_layer(context):
    session = context.session(N_CTX)
    session.begin(TOKENS, WINDOW)
    with pytest.raises(NativeError, match="no layer has run yet; call asl_session_run first"):
        session.save_layer()
