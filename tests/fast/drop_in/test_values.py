"""Values that reach C's sampler, its vocabulary and its rope: typed errors for those that it would take for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, OptionError, OptionTypeError, PromptError, StateError
from asl_gguf.drop_in.values import token_list
from harness import llama_cpp
from tiny_llama import DOCUMENT, QUESTIONS, chat, greedy

PRUNED = {"asl_budget": 0.4, "asl_min_prompt": 80}
ASKED = DOCUMENT + QUESTIONS[0]
NAN, INF = math.nan, math.inf
BUDGETS = pytest.mark.parametrize("options", [PRUNED, {}], ids=["budget", "no budget"])
COMPLETIONS: dict[str, Callable[..., Any]] = {
    "__call__": lambda llm, **given: llm("On day 3", max_tokens=2, **given),
    "create_completion": lambda llm, **given: llm.create_completion(ASKED, max_tokens=2, **given),
    "stream": lambda llm, **given: llm.create_completion(ASKED, max_tokens=2, stream=True, **given),
    "create_chat_completion": lambda llm, **given: llm.create_chat_completion(chat("On day 3"), max_tokens=2, **given),
}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "generate": lambda llm, **given: llm.generate(ASKED, **given),
    "sample": lambda llm, **given: llm.sample(**given),
}
BEYOND = {"top_k": (2**31, -(2**31) - 1, 2**32 + 1, 10**5000), "mirostat_mode": (2**31, 2**32 + 1)}
FLOATS = (
    "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "tfs_z", "mirostat_tau",
    "mirostat_eta",
)  # fmt: skip


@BUDGETS
@pytest.mark.parametrize("entry", COMPLETIONS | SAMPLERS)
def test_values_of_the_sampler(make, options, entry):
    """At the call, before a stream's first chunk is asked for."""
    llm, call = make(**options), (COMPLETIONS | SAMPLERS)[entry]
    temperature = "temp" if entry in SAMPLERS else "temperature"
    llm.eval(ASKED[:4])
    for name, values in BEYOND.items():
        for value in values:
            with pytest.raises(
                OptionError, match=rf"^{name}: expected an integer from -2147483648 to 2147483647, got "
            ):
                call(llm, **{name: value})
        with pytest.raises(OptionTypeError, match=rf"^{name}: expected an integer, got '40'"):
            call(llm, **{name: "40"})
    for name in (temperature, *FLOATS):
        for value in (NAN, INF, -INF, 1e300, 10**400, np.float32("nan")):
            with pytest.raises(OptionError, match=rf"^{name}: expected a finite number of 32 bits, got "):
                call(llm, **{name: value})
        with pytest.raises(OptionTypeError, match=rf"^{name}: expected a number, got None"):
            call(llm, **{name: None})
    assert len(greedy(llm, ASKED, 2)) == 2


@BUDGETS
@pytest.mark.parametrize("entry", COMPLETIONS)
def test_seeds_biases_and_stop_strings(make, options, entry):
    llm, call = make(**options), COMPLETIONS[entry]
    for seed in (2**32, -(2**31) - 1, 10**5000):
        with pytest.raises(OptionError, match="^seed: expected an integer from -2147483648 to 4294967295, got "):
            call(llm, seed=seed)
    for token in (llm.n_vocab(), -1, 2**32, 2**70, "300000"):
        with pytest.raises(OptionError, match=f"logit_bias: expected token ids from 0 to {llm.n_vocab() - 1}, got "):
            call(llm, logit_bias={token: 1.0})
    for bias in ({5: NAN}, {5: INF}, {5: "x"}, {"x": 1.0}, {5: None}):
        with pytest.raises(OptionError, match="logit_bias: expected "):
            call(llm, logit_bias=bias)
    with pytest.raises(OptionTypeError, match="logit_bias: expected a dict"):
        call(llm, logit_bias=[5])
    for stop in (5, [5], ["a", None]):
        with pytest.raises(OptionTypeError, match="stop: expected a str or a list of them"):
            call(llm, stop=stop)
    with pytest.raises(OptionError, match="max_tokens: expected a number of tokens, got nan"):
        COMPLETIONS["__call__"](llm) and llm("On day 3", max_tokens=NAN)
    for given in ({"seed": -1}, {"seed": 2**32 - 1}, {"logit_bias": {"5": -INF}}, {"top_k": np.int64(40)}, {"stop": ("~",)},
                  {"temperature": np.float32(0.5)}, {"temperature": np.float64(0.5)}):  # fmt: skip
        list(call(llm, **given))


@BUDGETS
def test_seeds_elsewhere(make, tiny_model, options):
    for seed in (2**32, 2**40, -(2**31) - 1):
        with pytest.raises(OptionError, match="^seed: expected an integer from"):
            Llama(str(tiny_model("llama")), seed=seed, **options)
    llm = make(**options, seed=2**32 - 1)
    with pytest.raises(OptionError, match="^seed: expected an integer from"):
        llm.set_seed(2**33)
    llm.set_seed(2**32)  # the parent draws it once in 2**32 times
    assert len(greedy(llm, ASKED, 2)) == 2


@BUDGETS
def test_tokens_beyond_the_vocabulary(make, options):
    llm = make(**options)
    n_vocab, expected = llm.n_vocab(), greedy(make(**options), ASKED)
    calls: list[Callable[[list[Any]], Any]] = [
        llm.generate,
        llm.eval,
        llm.prefill,
        llm.create_completion,
        llm,
        llm.detokenize,
        llm.tokenizer().decode,
        lambda tokens: llm.create_completion(tokens, stream=True),
        lambda tokens: llm.generate(tokens, reset=False),
    ]
    for token in (n_vocab, -1, 2**31, 2**32 + 70, 2**70, 10**5000, np.int64(n_vocab)):
        for call in calls:
            with pytest.raises(PromptError, match=f"expected token ids from 0 to {n_vocab - 1}, got "):
                call([70, token])
    for wrong in (7.5, "a", None):
        for call in calls:
            with pytest.raises(PromptError, match="expected integers as token ids, got "):
                call([70, wrong])
    assert greedy(llm, ASKED) == expected
    sent = llm.generate(ASKED, temp=0.0)
    next(sent)
    with pytest.raises(PromptError, match="expected token ids"):
        sent.send([n_vocab])


def test_texts(make):
    llm = make(**PRUNED)
    for call in (llm, llm.prefill, llm.create_completion, lambda text: llm.create_chat_completion(chat(text))):
        with pytest.raises(PromptError, match=r"expected a text of Unicode characters, got '\\ud800' in it"):
            call("On day \ud800")
    for call in (llm.tokenize, llm.tokenizer().tokenize):
        with pytest.raises(OptionTypeError, match="text: expected bytes in UTF-8, got 'On day 3'"):
            call("On day 3")
    assert llm.detokenize([]) == b"" and llm.detokenize(np.array([70, 71])) == llm.detokenize([70, 71])


@pytest.mark.parametrize("budget", [0.4, None])
def test_rope_and_shares(tiny_model, budget):
    path = str(tiny_model("llama"))
    for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
                 "lora_scale"):  # fmt: skip
        for value in (NAN, INF, -INF, 1e39, 10**400):
            with pytest.raises(OptionError, match=rf"^{name}: expected a finite number of 32 bits, got "):
                Llama(path, asl_budget=budget, **{name: value})
    with pytest.raises(OptionError, match="tensor_split: expected a finite number"):
        Llama(path, asl_budget=budget, tensor_split=[1.0, NAN])


def test_no_tokens_at_all():
    token_list([], 4)
    with pytest.raises(PromptError, match="expected token ids, got 5"):
        token_list(5, 4)  # type: ignore[arg-type]
    assert llama_cpp.LLAMA_DEFAULT_SEED == 2**32 - 1


@BUDGETS
def test_a_sample_of_nothing(make, options):
    """The parent ends the process, or fails an assertion of its own."""
    llm = make(**options)
    with pytest.raises(
        StateError, match="expected logits of an evaluated token to sample from, got none after 0 tokens"
    ):
        llm.sample()
    llm.eval(ASKED[:20])
    token = llm.sample(temp=0.0)
    for idx in (0, 5, 20, 30, -7, 2**31 - 1, -(2**31)):
        with pytest.raises(StateError, match=f"got none after 20 tokens for idx {idx}; evaluate a token first"):
            llm.sample(idx=idx)
    for idx in (2**31, 2**70):
        with pytest.raises(OptionError, match="^idx: expected an integer from"):
            llm.sample(idx=idx)
    assert llm.sample(temp=0.0, idx=19) == llm.sample(temp=0.0) == token
    state = llm.save_state()
    fresh = make(**options)
    fresh.load_state(state)
    try:
        assert fresh.sample(temp=0.0) == token
    except StateError:
        assert not options  # the parent restores no logits


@BUDGETS
@pytest.mark.parametrize(
    "given",
    [{"grammar": "root ::= x"}, {"suffix": 5}, {"max_tokens": {}}, {"logits_processor": 5}, {"logits_processor": [5]},
     {"stopping_criteria": {}}, {"stopping_criteria": [0.5]}, {"echo": True}],
    ids=str,
)  # fmt: skip
def test_types_are_checked_at_the_call(make, options, given):
    """And not when the answer is there."""
    llm = make(**options)
    with pytest.raises(OptionTypeError, match=f"^{next(iter(given))}: expected "):
        llm.create_completion(ASKED, **given)
    assert llm.last_prefill is None
    with pytest.raises(OptionTypeError, match="last_n_tokens_size: expected an integer, got '64'"):
        make(**options, last_n_tokens_size="64")
    with pytest.raises(OptionTypeError, match="logits_all: expected True or False, got ''"):
        make(**options, logits_all="")


@BUDGETS
def test_prompts_that_are_none(make, options):
    llm = make(**options)
    for prompt in (5, 0.5, {}, None, (70, 71)):
        with pytest.raises(PromptError, match="prompt: expected a str or a list of token ids, got "):
            llm.create_completion(prompt)


def test_grammars_that_nobody_can_read(tiny_model):
    from asl_gguf.native.bindings import llama_cpp

    llm = Llama(str(tiny_model("llama")), n_ctx=512, n_threads=1, verbose=False, asl_budget=0.5)
    for text in ("((", 'start ::= "a"'):  # no rule by name of root
        wrong = llama_cpp.LlamaGrammar.from_string(text, verbose=False)
        for call in (
            lambda wrong=wrong: llm("a", max_tokens=2, grammar=wrong),
            lambda wrong=wrong: llm.create_chat_completion([{"role": "user", "content": "a"}], grammar=wrong),
            lambda wrong=wrong: next(llm.generate(llm.tokenize(b"a"), grammar=wrong)),
        ):
            with pytest.raises(OptionError, match="grammar: expected one in llama.cpp's notation"):
                call()
    right = llama_cpp.LlamaGrammar.from_string('root ::= "yes"', verbose=False)
    assert llm("a", max_tokens=9, grammar=right)["choices"][0]["text"] == "yes"
