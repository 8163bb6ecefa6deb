"""The default model, SmolLM2-135M-Instruct in Q4_1, on two threads: exactness, scores, answers, states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.engine.prefill import prefill
from asl_gguf.eval.demo_text import DemoDocument, make_document
from asl_gguf.native.vocabulary import tokenize
from asl_gguf.policies import Full, ranking
from harness import F16, KV_NAMES, Q8_0, Model, Options, assert_same, llama_cpp

N_LAYER = 30
WINDOW = 32
N_UBATCH = 512
SHARE = 0.2


class TwoThreads(Options):
    def to_params(self) -> Any:
        params = super().to_params()
        params.n_threads = params.n_threads_batch = 2
        return params


def options(flash: bool, kv: int, n_ubatch: int = N_UBATCH) -> Options:
    return TwoThreads(n_ctx=1280, n_batch=n_ubatch, n_ubatch=n_ubatch, flash=flash, kv=kv)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    model = Model(smollm2)
    yield model
    model.close()


@pytest.fixture(scope="module")
def document(model: Model) -> DemoDocument:
    return make_document(lambda text: len(tokenize(model.handle, text)), 900)


@pytest.fixture(scope="module")
def tokens(model: Model, document: DemoDocument) -> list[int]:
    """The document twice: more than 1,100 token ids of real text."""
    return tokenize(model.handle, f"{document.text}\n\n{document.text}")


@pytest.fixture(scope="module")
def stock_logits(model: Model, tokens: list[int]) -> Any:
    """`stock_logits(n_tokens, options)`: after a stock prefill, and after one more token; computed once."""
    found: dict[tuple[int, Options], list[np.ndarray]] = {}

    def stock_logits(n_tokens: int, options: Options) -> list[np.ndarray]:
        if (n_tokens, options) not in found:
            with model.context(options) as context:
                context.prefill(tokens[:n_tokens])
                found[n_tokens, options] = context.continuation(tokens[:1])
        return found[n_tokens, options]

    return stock_logits


SETTINGS = {
    f"{'flash' if flash else 'plain'}-{KV_NAMES[kv]}": (flash, kv)
    for flash, kv in ((False, F16), (True, F16), (True, Q8_0))
}
CASES = [
    *((setting, N_UBATCH, n_tokens) for setting in SETTINGS for n_tokens in (1, WINDOW + 1)),
    *((setting, 64, n_tokens) for setting in SETTINGS for n_tokens in (63, 64, 65, 150)),
    ("plain-f16", N_UBATCH, 511),
    ("flash-q8_0", N_UBATCH, 512),
    ("plain-f16", N_UBATCH, 513),
    ("plain-f16", N_UBATCH, 1100),
    ("flash-f16", N_UBATCH, 1100),
]


@pytest.mark.parametrize("setting, n_ubatch, n_tokens", CASES)
def test_nothing_pruned_is_stock_bit_for_bit(model, tokens, stock_logits, setting, n_ubatch, n_tokens):
    chosen = options(*SETTINGS[setting], n_ubatch)
    with model.context(chosen) as context:
        report = prefill(context.session(), tokens[:n_tokens], Full(), n_tokens)
        actual = context.continuation(tokens[:1])
    assert not report.pruned and report.n_dequantised == 0
    assert_same(actual, stock_logits(n_tokens, chosen), f"{setting}, {n_tokens} tokens")


@pytest.mark.parametrize("setting, n_ubatch, n_tokens", [("plain-f16", N_UBATCH, 513), ("flash-q8_0", 64, 150)])
def test_a_fixed_selection_layer_with_all_tokens_kept(model, tokens, stock_logits, setting, n_ubatch, n_tokens):
    chosen = options(*SETTINGS[setting], n_ubatch)
    with model.context(chosen) as context:
        session = context.session()
        session.begin(tokens[:n_tokens], WINDOW)
        for layer in range(11):
            session.run(1, layer == 10)
            session.keep_rows(None)
        session.keep_tokens(np.arange(n_tokens, dtype=np.int32))
        session.finish()
        actual = context.continuation(tokens[:1])
    assert_same(actual, stock_logits(n_tokens, chosen), setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_equal_the_twin(model, tokens, setting):
    """In the first, a middle and the last layer. Scores below a millionth of their head's largest count as that."""
    with model.context(options(*SETTINGS[setting])) as context:
        session = context.session()
        session.begin(tokens[:300], WINDOW)
        for layer, n_layers in ((0, 1), (12, 12), (N_LAYER - 1, N_LAYER - 13)):
            session.run(n_layers, True)
            info, scores, queries = session.info(), session.scores(), session.queries()
            expected = ranking.window_scores(queries, session.keys(), 1 / math.sqrt(info.n_embd_head_k))
            floor = 1e-6 * expected.max(axis=-1, keepdims=True)
            error = float((np.abs(scores - expected) / np.maximum(expected, floor)).max())
            assert scores.shape == (3, 300) and info.next_layer == layer + 1
            assert error < 1e-5, f"layer {layer}: largest relative error {error:.2e}"


@pytest.fixture(scope="module")
def f16_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The same model with its weights stored as F16."""
    path = tmp_path_factory.mktemp("f16") / "smollm2-f16.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 1, True, 2
    assert llama_cpp.llama_model_quantize(str(smollm2).encode(), str(path).encode(), params) == 0
    model = Model(path)
    yield model
    model.close()
    path.unlink()


@pytest.fixture(scope="module")
def plain_model(smollm2: Path) -> Iterator[Model]:
    """The model with its weights as they lie in the file, on every processor."""
    model = Model(smollm2, repack=False)
    yield model
    model.close()


@pytest.mark.parametrize("setting", ["plain-f16", "flash-f16"])
def test_expanded_weights_stay_within_the_tolerance_of_an_f16_copy(plain_model, f16_model, tokens, setting):
    """Over prompts of several lengths the root mean square difference to the F16 copy is about stock's."""
    chosen, lengths = options(*SETTINGS[setting]), (60, 120, 180, 240, 300)
    with plain_model.context(chosen) as stock, plain_model.context(chosen) as ours, f16_model.context(chosen) as f16:
        session = ours.session()
        session.set_dequant("auto")
        differences = []
        for n_tokens in lengths:
            report = prefill(session, tokens[:n_tokens], Full(), n_tokens)
            assert report.n_dequantised > 200
            expected = f16.prefill(tokens[:n_tokens])
            logits = (ours.logits(), stock.prefill(tokens[:n_tokens]))
            differences.append([np.square(actual - expected).mean() for actual in logits])
            assert logits[0].argmax() == expected.argmax() == logits[1].argmax()
    rms_ours, rms_stock = np.sqrt(np.mean(differences, axis=0))
    print(np.sqrt(differences))
    assert rms_ours <= 1.25 * rms_stock, f"difference to the F16 copy: {rms_ours:.3f}, stock's {rms_stock:.3f}"


@pytest.fixture
def make(smollm2: Path) -> Iterator[Any]:
    """`make(**kwargs)`: a Llama on the model, closed after the test."""
    made: list[Llama] = []

    def make(**kwargs: Any) -> Llama:
        made.append(
            Llama(str(smollm2), **{"n_ctx": 1280, "n_threads": 2, "n_threads_batch": 2, "asl_room": 256, **kwargs})
        )
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def ask(llm: Llama, messages: list[dict[str, str]], max_tokens: int = 48) -> str:
    found = llm.create_chat_completion(messages, max_tokens=max_tokens, temperature=0.0)
    return found["choices"][0]["message"]["content"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_question_of_the_demo(make, document):
    messages = [user(f"{document.text}\n\n{document.question}")]
    for budget in (None, SHARE):
        llm = make(asl_budget=budget)
        assert document.answer in ask(llm, messages), budget
        report = llm.last_prefill
        assert report.prompt_tokens > 850
    assert report.kept_tokens == int(SHARE * report.prompt_tokens)
    assert report.selection_layer is not None and 11 < report.selection_layer < 24
    assert report.kv_bytes < report.kv_bytes_full / 2 and 0.5 < report.attention_mass < 1


def test_the_next_turn(make, document, monkeypatch):
    """It goes on from the pruned cache: only its own tokens run, and the fact is still there."""
    llm = make(asl_budget=SHARE)
    messages = [user(f"{document.text}\n\n{document.question}")]
    messages.append({"role": "assistant", "content": ask(llm, messages)})
    first, sizes = llm.last_prefill, []
    decode = llm._ctx.decode
    monkeypatch.setattr(llm._ctx, "decode", lambda batch: sizes.append(batch.batch.n_tokens) or decode(batch))
    messages.append(user("Say that number again."))
    assert document.answer in ask(llm, messages)
    report = llm.last_prefill
    assert report.reused_tokens > first.prompt_tokens
    assert sizes[0] == report.prompt_tokens - report.reused_tokens < 40


def test_a_saved_state(make, tokens, tmp_path):
    """In the object itself after another prompt, and in a new one: the same continuation."""
    prompt, turn = tokens[:400], tokens[450:470]

    def greedy(llm: Llama, tokens: list[int]) -> list[int]:
        return list(islice(llm.generate(tokens, temp=0.0), 12))

    llm = make(asl_budget=SHARE)
    answer = greedy(llm, prompt)
    assert llm.last_prefill.pruned
    state = llm.save_state()
    expected = greedy(llm, prompt + answer + turn)
    greedy(llm, tokens[500:560])
    for target in (llm, make(asl_budget=SHARE)):
        target.load_state(state)
        assert greedy(target, prompt + answer + turn) == expected
        assert target.last_prefill.reused_tokens == len(prompt) + len(answer) - 1
