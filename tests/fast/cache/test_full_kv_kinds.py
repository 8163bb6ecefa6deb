"""K/V and states on the host, of models with recurrent states or shared K/V: prompts go on where a state was kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.cache.host_kv import HostKV
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.reusing import ReusingLayers
from asl_gguf.policies import Policy, make_policy
from asl_gguf.report import PrefillReport
from harness import Context, Options
from tiny_kinds import loaded_kind

pytestmark = pytest.mark.long

OPTIONS = Options(n_ctx=512, n_batch=48, n_ubatch=32)
WINDOW, N_KEPT = 8, 60
ANSWER = [70, 71, 72]
STATES = ("delta-net", "mamba", "mamba2-beside", "short-conv", "kda")
SHARED = ("shared-kv", "streams", "mla", "sparse", "sparse-sliding")


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, n_tokens]).integers(3, 128, n_tokens).tolist()


DOCUMENT = prompt(150)
QUESTIONS = [DOCUMENT + prompt(40, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module", params=(*STATES, *SHARED))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    with loaded_kind(tmp_path_factory.mktemp("kinds"), kind) as loaded:
        yield loaded


def host(context: Context) -> HostKV:
    found = HostKV.of(True, context.session())
    assert found is not None
    return found


def selecting(context: Context, later: int = 0) -> Policy:
    """At the first layer that is asked about, or a later one."""
    asked = [layer for layer, itself in enumerate(context.session().sliding) if not itself]
    return make_policy(f"fastkv:tsp_layer={asked[min(later, len(asked) - 1)]}:window={WINDOW}")


def keep(context: Context, kept: HostKV, tokens: list[int], policy: Policy | None = None) -> PrefillReport:
    layers = ReusingLayers(context.session(1024), kept)
    return layers.corrected(prefill(layers, tokens, policy or selecting(context), N_KEPT))


def close(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.abs(x - y).max() < 0.02 * x.std() for x, y in zip(a, b, strict=True))


def test_a_first_prompt_runs_as_ever(model):
    """Chunks end where they do without, so that all is bit for bit the same."""
    with model.context(OPTIONS) as plain, model.context(OPTIONS) as keeping:
        prefill(plain.session(1024), DOCUMENT, selecting(plain), N_KEPT)
        report = keep(keeping, kept := host(keeping), DOCUMENT)
        assert keeping.get_state() == plain.get_state() and report.full_kv_bytes == kept.n_bytes > 0
        assert report.reason is None


@pytest.mark.parametrize("later", [0, 1], ids=["same-layer", "deeper"])
def test_questions_about_a_document(model, kind, later):
    """Each selects from all tokens what it would alone; only its own tokens run in the layers that are there."""
    with model.context(OPTIONS) as context, model.context(OPTIONS) as alone:
        kept = host(context)
        keep(context, kept, DOCUMENT)
        for i, tokens in enumerate(QUESTIONS):
            policy = selecting(context, later if i == 1 else 0)
            report = keep(context, kept, tokens, policy)
            assert report.reused_tokens == len(DOCUMENT) and report.pruned and report.reason is None
            if i == 2 and later:
                continue  # no token is dropped before the deeper layer of the one before: other K/V than alone
            expected = prefill(alone.session(1024), tokens, policy, N_KEPT)
            assert report.selected == expected.selected and report.token_layers < expected.token_layers
            assert close(context.continuation(ANSWER), alone.continuation(ANSWER))


def test_a_prompt_that_leaves_before_any_state(model, kind):
    """Runs whole, says why, and is bit for bit what it is alone; the next one that leaves there goes on from there."""
    with model.context(OPTIONS) as context, model.context(OPTIONS) as alone:
        kept = host(context)
        keep(context, kept, prompt(300, 4))
        tokens = [*prompt(300, 4)[:100], *prompt(150, 5)]
        report = keep(context, kept, tokens)
        if kind in SHARED:
            assert report.reused_tokens == 100 and report.reason is None
            return
        assert report.reused_tokens == 0 and "leaves the one before after 100 tokens" in report.reason
        prefill(alone.session(1024), tokens, selecting(alone), N_KEPT)
        assert context.get_state() == alone.get_state()
        other = [*tokens[:100], *prompt(150, 6)]
        report = keep(context, kept, other)
        assert report.reused_tokens == 96 and report.reason is None  # the last end of a chunk before
        prefill(alone.session(1024), other, selecting(alone), N_KEPT)
        assert close(context.continuation(ANSWER), alone.continuation(ANSWER))


def test_a_short_question_goes_on_from_a_chunk_before_the_end(model, kind):
    """Its window reaches into what was stored, whose end is no place to go on from."""
    with model.context(OPTIONS) as context:
        kept = host(context)
        keep(context, kept, DOCUMENT)
        report = keep(context, kept, [*DOCUMENT, 70, 71])
        assert report.reused_tokens == (128 if kind in STATES else len(DOCUMENT) + 2 - WINDOW)


def test_how_many_states_there_are(model, kind):
    with model.context(OPTIONS) as context:
        kept, tokens = host(context), list(DOCUMENT)
        for seed in range(6):
            keep(context, kept, tokens)
            assert len(kept.states) <= 4 and (len(tokens) in kept.states) is (kind in STATES)
            assert all(state.size == sum(kept.state_bytes[: kept.depth]) for state in kept.states.values())
            tokens += prompt(40, seed)


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
def test_packed_rows_have_the_cache_s_own_widths(model, flash):
    """Whatever the file's header says of them; states lie beside as they are."""
    with model.context(replace(OPTIONS, flash=flash)) as context:
        kept, exact = HostKV.of("q8_0", context.session()), host(context)
        assert kept is not None and sum(kept.row_bytes) < sum(exact.row_bytes)
        assert [n > 0 for n in kept.row_bytes] == [n > 0 for n in exact.row_bytes]
        for one in (exact, kept):
            keep(context, one, DOCUMENT)
        for layer, rows in enumerate(exact.layers):
            found, expected = (one.rows(layer, len(DOCUMENT)).view(np.float16) for one in (kept, exact))
            assert rows.shape == expected.view(np.uint8).shape
            assert np.abs(found.astype(np.float32) - expected).max(initial=0) <= 0.01 * np.abs(expected).max(initial=1)
        report = keep(context, kept, QUESTIONS[0])
        assert report.reused_tokens == len(DOCUMENT) and report.pruned
