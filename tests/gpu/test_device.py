"""Layers and K/V in memory that the host does not see: beside stock llama.cpp there, and beside the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from asl_gguf.cache.host_kv import HostKV
from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.replay import Replay, record
from asl_gguf.engine.reusing import ReusingLayers
from asl_gguf.native import moving
from asl_gguf.policies import ASL, FastKV, Full, GemFilter, Policy, PyramidInfer, SnapKV, SpanASL, StreamingLLM, ranking
from harness import F16, KV_NAMES, Q8_0, Context, Model, Options, prompt
from sequences import Sequences, plain_state
from tiny_gguf import ARCHITECTURES, SLIDING

N_LAYER, N_HEAD, N_HEAD_KV = 6, 4, 2
HEAD_DIM = 64  # the smallest that GPUs have flash attention kernels for
N_TOKENS, N_KEPT, WINDOW = 150, 40, 8
TENSOR_CORES = 5e-3  # they round the factors of F32 products to 11 bits: 2.3e-3 on an H100
TOKENS = prompt(N_TOKENS)
ANSWER = [70, 71, 72]
ALL = 99
POLICIES: dict[str, Policy] = {
    "asl": ASL(window=WINDOW, min_layer=2, obs_layers=2, tau=2),
    "asl-span": SpanASL(),
    "fastkv": FastKV(window=WINDOW, tsp_layer=2, cache_k="all"),
    "gemfilter": GemFilter(select_layer=2),
    "snapkv": SnapKV(window=WINDOW),
    "streaming_llm": StreamingLLM(window=WINDOW),
    "pyramidinfer": PyramidInfer(min_context=12),
}

with_flash = pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
with_kv = pytest.mark.parametrize("kv", [F16, Q8_0], ids=KV_NAMES.get)
with_layers = pytest.mark.parametrize("n_gpu_layers", [ALL, 3], ids=["all", "half"])


@pytest.fixture(scope="module")
def load(tiny_model) -> Iterator[Callable[..., Model]]:
    """`load(architecture, n_gpu_layers)`"""
    loaded: dict[tuple[str, int], Model] = {}

    def get(architecture: str, n_gpu_layers: int) -> Model:
        key = architecture, n_gpu_layers
        if key not in loaded:
            loaded[key] = Model(tiny_model(architecture, head_dim=HEAD_DIM), n_gpu_layers=n_gpu_layers)
        return loaded[key]

    yield get
    for model in loaded.values():
        model.close()


@pytest.fixture
def check(is_exact) -> Callable[[list[np.ndarray], list[np.ndarray]], None]:
    """Equal bit for bit, or within what other kernels round."""

    def compare(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
        worst = max(float(np.abs(a - b).max()) for a, b in zip(actual, expected, strict=True))
        assert all(np.isfinite(a).all() for a in actual)
        assert worst <= (0.0 if is_exact else 0.1), f"logits differ by up to {worst}"

    return compare


@with_kv
@with_flash
@with_layers
@pytest.mark.parametrize("architecture", ARCHITECTURES + SLIDING)
def test_nothing_pruned_is_stock(load, check, architecture, n_gpu_layers, flash, kv):
    model, options = load(architecture, n_gpu_layers), Options(flash=flash, kv=kv)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(TOKENS)
        prefill(context.session(), TOKENS, Full(), N_TOKENS)
        check(context.continuation(ANSWER), stock.continuation(ANSWER))


@with_layers
def test_hidden_states_lie_where_the_layers_run(load, n_gpu_layers):
    with load("llama", n_gpu_layers).context() as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        session.run(2, False)
        hidden = N_TOKENS * N_HEAD * HEAD_DIM * 4
        info = session.info()
        on_device = n_gpu_layers == ALL
        assert (info.device_bytes >= hidden) == on_device and (info.host_bytes >= hidden) != on_device
        session.abort()
        assert session.info().device_bytes == session.info().host_bytes == 0


@with_flash
@with_layers
def test_positions_and_cells_are_sent_once(load, n_gpu_layers, flash):
    """What chunks read of the host in the first layer lies on the device from then on, until tokens are dropped."""
    with load("llama", n_gpu_layers).context(Options(flash=flash)) as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        sizes = []
        for _ in range(3):
            session.run(1, False)
            sizes.append(session.info().device_bytes)
        assert sizes[0] == sizes[1] == sizes[2]
        n_row = N_HEAD * HEAD_DIM * 4  # of a token's hidden state
        session.keep_tokens(np.arange(N_TOKENS - N_KEPT, N_TOKENS))
        copies = sizes[0] - session.info().device_bytes - (N_TOKENS - N_KEPT) * n_row * (n_gpu_layers == ALL)
        if n_gpu_layers == ALL:
            assert 0 < copies <= N_TOKENS * n_row, copies
        else:
            assert copies == 0
        session.abort()


@with_kv
@with_flash
@with_layers
def test_scores_equal_the_twin(load, is_exact, n_gpu_layers, flash, kv):
    with load("llama", n_gpu_layers).context(Options(flash=flash, kv=kv)) as context:
        session = context.session()
        session.begin(TOKENS, WINDOW)
        for _ in range(N_LAYER):
            session.run(1, True)
            queries, keys = session.queries(), session.keys()
            twin = ranking.window_scores(queries, keys, queries.shape[-1] ** -0.5)
            error = float((np.abs(session.scores() - twin) / twin).max())
            assert error <= (1e-5 if is_exact else TENSOR_CORES), error


@with_flash
@with_layers
@pytest.mark.parametrize("architecture", ["llama", *SLIDING])
@pytest.mark.parametrize("name", POLICIES)
def test_pruned_as_on_the_cpu(load, check, is_exact, name, architecture, n_gpu_layers, flash):
    policy, options, n_kept = POLICIES[name], Options(flash=flash), max(N_KEPT, POLICIES[name].min_kept)
    with load(architecture, 0).context(options) as cpu, load(architecture, n_gpu_layers).context(options) as context:
        theirs = prefill(cpu.session(), TOKENS, policy, n_kept)
        ours = prefill(context.session(), TOKENS, policy, n_kept)
        assert ours.pruned and ours.rows_by_layer == theirs.rows_by_layer
        if is_exact:  # other rounding chooses others of equal rank
            assert ours.selected == theirs.selected
            check(context.continuation(ANSWER), cpu.continuation(ANSWER))


@with_flash
@with_layers
def test_rows_per_head(load, is_exact, n_gpu_layers, flash):
    """The rows of the stock cache of that device, byte for byte: which bytes it holds, the device decides. Where half
    of the layers are on a GPU, it may compute those of the others too, and other ones of a layer alone.
    """
    rng = np.random.default_rng(0)
    model, options = load("llama", n_gpu_layers), Options(flash=flash)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(TOKENS)
        full = stock.cells()
        session = context.session()
        session.begin(TOKENS, WINDOW)
        lists = []
        for _ in range(N_LAYER):
            session.run(1, False)
            others = [np.sort(rng.choice(N_TOKENS - 1, N_KEPT - 1, replace=False)) for _ in range(N_HEAD_KV)]
            lists.append(np.array([np.append(chosen, N_TOKENS - 1) for chosen in others], dtype=np.int32))
            session.keep_rows(lists[-1])
        session.finish()
        held = context.cells()
        for layer, index in enumerate(lists):
            for got, rows in ((held.keys, full.keys), (held.values, full.values)):
                kept = ranking.gather_rows(rows[layer], index)
                if is_exact or n_gpu_layers == ALL:
                    assert np.array_equal(got[layer], kept), layer
                else:
                    assert np.allclose(got[layer].view(np.float16), kept.view(np.float16), atol=0.02), layer


@with_layers
def test_a_second_question_selects_from_all(load, check, is_exact, n_gpu_layers):
    def ask(context: Context) -> list[np.ndarray]:
        kept = HostKV()
        for question in (prompt(20, seed=1), prompt(25, seed=2)):
            session = ReusingLayers(context.session(), kept)
            report = prefill(session, TOKENS[:128] + question, POLICIES["asl"], N_KEPT)
        assert session.corrected(report).reused_tokens == 128
        return context.continuation(ANSWER)

    with load("llama", 0).context() as cpu, load("llama", n_gpu_layers).context() as context:
        ours, theirs = ask(context), ask(cpu)
        if is_exact:
            check(ours, theirs)


@with_layers
def test_a_record_of_layers(load, check, n_gpu_layers):
    with load("llama", n_gpu_layers).context() as context:
        prefill(context.session(), TOKENS, POLICIES["asl"], N_KEPT)
        expected = context.continuation(ANSWER)
        session = context.session()
        prefill(Replay(session, record(session, TOKENS, WINDOW)), TOKENS, POLICIES["asl"], N_KEPT)
        check(context.continuation(ANSWER), expected)


@with_flash
@with_layers
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_turn_after_a_pruned_prompt(load, is_exact, architecture, n_gpu_layers, flash):
    """As decoded there. A turn that is given up leaves the past as it was."""
    model, options = load(architecture, n_gpu_layers), Options(flash=flash)
    with model.context(options) as stock, model.context(options) as context:
        for used in (stock, context):
            prefill(used.session(), TOKENS, POLICIES["asl"], N_KEPT)
        session, turn, before = context.session(), prompt(100, seed=1), context.get_state()
        session.extend(turn, WINDOW)
        session.start_finish()
        for _ in range(5):
            assert session.step()
        session.abort()
        assert context.get_state() == before
        session.extend(turn, WINDOW)
        session.finish()
        stock.decode(turn)
        found, expected = context.continuation(ANSWER), stock.continuation(ANSWER)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 if is_exact else 0.1)


@with_flash
@with_layers
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_sequence_that_moves(load, check, architecture, unified, n_gpu_layers, flash):
    """Its rows byte for byte, V stored transposed or not; others keep theirs."""
    model = load(architecture, n_gpu_layers)
    options = Options(n_ctx=768, n_seq_max=3, unified=unified, flash=flash)
    with model.context(Options(flash=flash)) as own, model.context(options) as shared:
        live = Sequences(shared)
        live.decode(0, TOKENS[:30])
        live.decode(1, TOKENS[:20])
        live.decode(2, TOKENS[:40])
        live.remove(1)  # a hole
        before = [live.state(seq) for seq in (0, 2)]
        prefill(own.session(), TOKENS, POLICIES["snapkv"], N_KEPT)
        moving.move(own.handle, shared.handle, 1)
        check([shared.logits()], [own.logits()])
        assert live.plain_state(1) == plain_state(own.get_state())
        assert [live.state(seq) for seq in (0, 2)] == before
        if not unified:
            check([live.decode(1, ANSWER)], [own.decode(ANSWER)])
