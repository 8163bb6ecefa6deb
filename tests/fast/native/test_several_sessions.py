"""Sessions share no state: prefills over two models, or beside a stock context, give what they give alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from asl_gguf.native.session import Session
from harness import Model, Options, assert_same, prompt

OPTIONS = Options(n_ctx=256, n_batch=24, n_ubatch=24)
WINDOW = 8
ANSWER = [70, 71]


def run_all(session: Session, tokens: list[int]) -> Iterator[None]:
    """A pruned prefill, one layer at each step."""
    rows = np.arange(len(tokens) - 30, len(tokens))
    session.begin(tokens, WINDOW)
    for _ in range(session.info().n_layer - 1):
        session.run(1, True)
        session.keep_rows(rows)
        yield
    session.keep_tokens(rows)
    session.finish()
    yield


def test_two_sessions_interleaved(load_tiny):
    """Over two models of different sizes, layer by layer."""
    prompts = {"llama": prompt(70), "qwen3": prompt(95)}
    alone = {}
    for name, tokens in prompts.items():
        with load_tiny(name).context(OPTIONS) as context:
            for _ in run_all(context.session(), tokens):
                pass
            alone[name] = context.continuation(ANSWER)
    with load_tiny("llama").context(OPTIONS) as llama, load_tiny("qwen3").context(OPTIONS) as qwen3:
        contexts = {"llama": llama, "qwen3": qwen3}
        for _ in zip(*(run_all(contexts[name].session(), tokens) for name, tokens in prompts.items()), strict=True):
            pass
        together = {name: context.continuation(ANSWER) for name, context in contexts.items()}
    for name in prompts:
        assert_same(together[name], alone[name], name)


def test_two_contexts_of_one_model(load_tiny):
    """A stock context decodes between the layers of a session's prefill."""
    model, tokens = load_tiny("llama"), prompt(70)
    with model.context(OPTIONS) as context, model.context(OPTIONS) as other:
        expected = other.prefill(tokens)
        other.clear()
        session = context.session()
        session.begin(tokens, WINDOW)
        for i in range(model.n_layer):
            session.run(1, False)
            session.keep_rows(None)
            other.decode(tokens[i * 10 : (i + 1) * 10])
        session.finish()
        assert np.array_equal(context.logits(), expected)
        assert_same([other.decode(tokens[60:])], [expected_logits_of_parts(model, tokens)])


def expected_logits_of_parts(model: Model, tokens: list[int]) -> np.ndarray:
    """Stock logits of a prompt decoded ten tokens at a time."""
    with model.context(OPTIONS) as stock:
        return [stock.decode(tokens[i : i + 10]) for i in range(0, len(tokens), 10)][-1]


def test_two_threads(load_tiny):
    """Native calls run side by side: each thread has its own context over one model."""
    model, prompts = load_tiny("llama"), [prompt(n_tokens) for n_tokens in (90, 200)]

    def answers(tokens: list[int]) -> list[list[np.ndarray]]:
        with model.context(OPTIONS) as context:
            session, found = context.session(), []
            for _ in range(5):
                for _ in run_all(session, tokens):
                    pass
                found.append(context.continuation(ANSWER))
        return found

    alone = [answers(tokens) for tokens in prompts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(answers, prompts))
    for got, expected in zip(together, alone, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)
