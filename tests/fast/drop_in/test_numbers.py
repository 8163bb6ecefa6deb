"""Values of other types than Python's own that llama_cpp takes: numbers of NumPy and Decimal, messages that are no dicts."""

from __future__ import annotations

import pickle
import warnings
from collections import deque
from contextlib import closing
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from asl_gguf import Llama, OptionError, OptionTypeError
from harness import llama_cpp
from tiny_llama import DOCUMENT, N_CTX, QUESTIONS, READABLE, complete, logits

ASKED = DOCUMENT + QUESTIONS[0]
BUDGETS = pytest.mark.parametrize(
    "options", [{"asl_budget": 0.4, "asl_min_prompt": 80}, {}], ids=["budget", "no budget"]
)
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"
MESSAGES = [
    {"role": "system", "content": "Words alone."},
    {"role": "user", "content": "On day 3 the keeper wrote " * 4},
]
BAD_GRAMMARS = {"notation": "root := x", "left recursion": 'root ::= root "a" | "b"', "no root": 'x ::= "a"'}


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.fixture(scope="module")
def chatting(tiny_model):
    """Objects of both classes whose template reads messages as attributes, too."""
    handler = Jinja2ChatFormatter(TEMPLATE, eos_token="</s>", bos_token="<s>").to_chat_handler()
    given = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "chat_handler": handler}
    path = str(tiny_model("llama"))
    made = llama_cpp.Llama(path, **given), Llama(path, **given, asl_budget=0.5, asl_min_prompt=40, asl_protect="system")
    yield made
    for llm in made:
        llm.close()


@BUDGETS
def test_numbers_of_other_types(shared, options):
    llm = shared(**options)
    given = {"temperature": 0.5, "top_p": 0.5, "repeat_penalty": 1.5, "top_k": 20, "seed": 3, "max_tokens": 6}
    expected = complete(llm, ASKED, **given)["choices"][0]["text"]
    others: list[dict[str, Any]] = [
        {name: np.array(value) for name, value in given.items()},
        {name: Decimal(value) if isinstance(value, float) else np.uint8(value) for name, value in given.items()},
        {name: np.float16(value) if isinstance(value, float) else Index(value) for name, value in given.items()},
        {**given, "max_tokens": Decimal(6)},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in others:
            assert complete(llm, ASKED, **other)["choices"][0]["text"] == expected, other
    for wrong in ("5", b"5", [5], 5j, np.array([5, 6])):
        for name in ("top_p", "top_k", "max_tokens"):
            with pytest.raises(OptionTypeError, match=f"^{name}: expected a"):
                complete(llm, ASKED, **{name: wrong})


@pytest.mark.parametrize("like", [SimpleNamespace, lambda **given: MappingProxyType(given)], ids=["object", "mapping"])
@pytest.mark.parametrize("of", [list, tuple, iter, deque, lambda found: np.array(found, dtype=object)])
def test_messages_that_templates_read(chatting, like, of):
    options = {"max_tokens": 4, "temperature": 0.0, "logit_bias": READABLE}
    stock, ours = chatting
    stock.create_chat_completion(of([like(**one) for one in MESSAGES]), **options)
    expected = stock._input_ids.tolist(), ours.create_chat_completion(MESSAGES, **options)["choices"][0]["message"]
    n_protected, state = ours.last_prefill.protected_tokens, logits(ours)
    ours.reset()
    found = ours.create_chat_completion(of([like(**one) for one in MESSAGES]), **options)["choices"][0]["message"]
    assert found == expected[1] and ours.last_prefill.protected_tokens == n_protected > 0
    assert np.array_equal(logits(ours), state)
    n_prompt = ours.last_prefill.prompt_tokens
    assert ours._input_ids.tolist()[:n_prompt] == expected[0][:n_prompt]


def test_parts_that_are_objects(chatting):
    parts = [SimpleNamespace(type="text", text="Words "), {"type": "text", "text": "alone."}]
    template = Jinja2ChatFormatter(
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}", "</s>", "<s>"
    )
    _, ours = chatting
    handler, ours.chat_handler = ours.chat_handler, template.to_chat_handler()
    messages = [SimpleNamespace(role="system", content=parts), {"role": "user", "content": [parts[1]] * 20}]
    ours.create_chat_completion(messages, max_tokens=1)
    assert ours.last_prefill.protected_tokens > 0
    ours.chat_handler = handler


@BUDGETS
@pytest.mark.parametrize("grammar", BAD_GRAMMARS.values(), ids=BAD_GRAMMARS)
def test_a_grammar_that_is_none_is_refused_everywhere(shared, options, grammar):
    """The parent samples on without it, or ends the process."""
    llm, given = shared(**options), llama_cpp.LlamaGrammar(_grammar=grammar)
    llm.eval(ASKED)
    for call in (
        lambda: llm.sample(grammar=given),
        lambda: llm.generate(ASKED, grammar=given),
        lambda: complete(llm, ASKED, grammar=given),
    ):
        with pytest.raises(OptionError, match="^grammar: expected one in llama.cpp's notation"):
            call()


def test_numbers_of_numpy_when_an_object_is_made(tiny_model):
    path, given = str(tiny_model("llama")), {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    own = {
        "n_ctx": 512,
        "asl_budget": 80,
        "asl_room": 100,
        "asl_min_prompt": 90,
        "asl_guard": 0.0625,
        "asl_full_kv": True,
    }
    others = {name: np.array(value)[()] for name, value in own.items()}
    assert all(isinstance(value, np.generic) for value in others.values())
    made = [
        Llama(path, **given, **own, asl_protect=[(3, 8)]),
        Llama(path, **given, **others, asl_protect=[tuple(np.array([3, 8]))]),
    ]
    reports = []
    for llm in made:
        with closing(llm):
            next(llm.generate(ASKED, temp=0.0))
            reports.append((llm.n_ctx(), llm.last_prefill.selected, llm.last_prefill.kept_tokens, type(llm.n_ctx())))
            assert pickle.loads(pickle.dumps(llm)).n_ctx() == 512
    assert reports[0] == reports[1] and reports[0][2] == 80
    for options in ({}, {"asl_budget": 0.4}):
        with pytest.raises(OptionError, match="^n_ctx: expected a number of tokens"):
            Llama(path, n_ctx=np.float64(512), **options)
