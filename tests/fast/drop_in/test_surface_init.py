"""The arguments of `Llama` that work: equal to the parent's with nothing pruned, and pruned where that is asked for."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

from asl_gguf import Llama
from asl_gguf.drop_in import surface
from harness import F16, Q8_0, llama_cpp, prompt
from surface_cases import LAYERED, PRUNED, UNPRUNED
from tiny_gguf import FIRST_BYTE
from tiny_llama import TEXT, chat, greedy

pytestmark = pytest.mark.usefixtures("short_prompts_count")

INIT = surface.KEYWORDS["__init__"]
PROMPT = TEXT[:430]
"""long enough to show what scales positions"""


class ByteTokenizer(BaseLlamaTokenizer):
    """One token a byte."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        return [FIRST_BYTE + byte for byte in text]

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        return bytes(token - FIRST_BYTE for token in tokens if FIRST_BYTE <= token < FIRST_BYTE + 256)


def call_back(*, llama: Any, messages: list[dict[str, str]], **kwargs: Any) -> Any:
    """A chat handler of the user's own."""
    text = "".join(message["content"].upper() for message in messages)
    return llama.create_completion(text, max_tokens=kwargs["max_tokens"], seed=kwargs["seed"])


YARN = {"rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN, "rope_freq_scale": 0.25, "yarn_orig_ctx": 256}
LORA = {"lora_path": "the file of the lora fixture"}

WORKS: dict[str, list[dict[str, Any]]] = {
    "model_path": [{}],
    "n_gpu_layers": [{"n_gpu_layers": -1}],
    "split_mode": [{"split_mode": llama_cpp.LLAMA_SPLIT_MODE_NONE}, {"split_mode": llama_cpp.LLAMA_SPLIT_MODE_ROW}],
    "main_gpu": [{"main_gpu": 1}],
    "tensor_split": [{"tensor_split": [0.5, 0.5]}],
    "use_mmap": [{"use_mmap": False}],
    "use_mlock": [{"use_mlock": True}],
    "kv_overrides": [{"kv_overrides": {"llama.rope.freq_base": 500.0}}],
    "seed": [{"seed": 5}],
    "n_ctx": [{"n_ctx": 0}, {"n_ctx": 512}],
    "n_batch": [{"n_batch": 100}],
    "n_ubatch": [{"n_ubatch": 48}],
    "rope_scaling_type": [
        {"rope_scaling_type": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR, "rope_freq_scale": 0.5},
        {"rope_scaling_type": None},
    ],
    "pooling_type": [{"pooling_type": llama_cpp.LLAMA_POOLING_TYPE_MEAN}],
    "rope_freq_base": [{"rope_freq_base": 500.0}],
    "rope_freq_scale": [{"rope_freq_scale": 0.25}],
    "yarn_ext_factor": [{**YARN, "yarn_ext_factor": 0.5}],
    "yarn_attn_factor": [{**YARN, "yarn_attn_factor": 1.5}],
    "yarn_beta_fast": [{**YARN, "yarn_beta_fast": 4.0}],
    "yarn_beta_slow": [{**YARN, "yarn_beta_slow": 3.0}],
    "yarn_orig_ctx": [YARN],
    "offload_kqv": [{"offload_kqv": False}],
    "flash_attn": [{"flash_attn": True}],
    "op_offload": [{"op_offload": False}],
    "swa_full": [{"swa_full": False}],
    "no_perf": [{"no_perf": True}],
    "last_n_tokens_size": [{"last_n_tokens_size": 0}],
    "lora_base": [{"lora_base": "unused"}],
    "lora_path": [LORA],
    "lora_scale": [{**LORA, "lora_scale": 0.3}],
    "chat_format": [{"chat_format": "alpaca"}],
    "chat_handler": [{"chat_handler": call_back}],
    "tokenizer": [{"tokenizer": ByteTokenizer()}],
    "type_k": [{"type_k": Q8_0}, {"type_k": F16}],
    "type_v": [{"type_k": Q8_0, "type_v": Q8_0, "flash_attn": True}],
    "spm_infill": [{"spm_infill": True}],
    "verbose": [{"verbose": True}],
}
"""keyword -> arguments to try it with"""

SHOWS = {"kv_overrides", "seed", "rope_scaling_type", "rope_freq_base", "rope_freq_scale", "last_n_tokens_size"}
SHOWS |= {"lora_path", "lora_scale", "tokenizer", "spm_infill", "chat_format", "chat_handler"}
SHOWS |= {name for name in INIT if name.startswith("yarn_")}
"""keywords whose first value changes the answer of a tiny model"""


def complete_answer(llm: Any) -> Any:
    """What shows a seed, an order of infill and a tokenizer."""
    found = llm.create_completion(PROMPT, suffix=" The end.", max_tokens=4)
    return found["choices"], found["usage"]


def repeating_answer(llm: Any) -> Any:
    """What shows how far back a penalty looks."""
    found = llm.create_completion(PROMPT, max_tokens=6, temperature=0.0, frequency_penalty=-5.0)
    return found["choices"], found["usage"]


def chat_answer(llm: Any) -> Any:
    found = llm.create_chat_completion(chat(PROMPT), max_tokens=4, seed=1)
    return found["choices"], found["usage"]


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "last_n_tokens_size": repeating_answer,
    "chat_format": chat_answer,
    "chat_handler": chat_answer,
}
"""for the others: complete_answer"""


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> str:
    """Path of a random adapter for the tiny llama."""
    path = tmp_path_factory.mktemp("lora") / "lora.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    rng = np.random.default_rng(0)
    for layer in range(6):
        for name, n_in, n_out in (("attn_q", 128, 128), ("attn_v", 128, 64), ("ffn_down", 256, 128)):
            tensor = f"blk.{layer}.{name}.weight.lora_"
            writer.add_tensor(tensor + "a", rng.standard_normal((4, n_in), dtype=np.float32) / np.float32(n_in**0.5))
            writer.add_tensor(tensor + "b", rng.standard_normal((n_out, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture
def plain_answer(stock) -> Callable[..., Any]:
    """The parent's answer without further arguments, computed once."""
    return lambda answer: _PLAIN.get(answer) or _PLAIN.setdefault(answer, answer(stock()))


_PLAIN: dict[Callable[[Any], Any], Any] = {}


def test_every_argument_that_works_is_tried():
    elsewhere = {"n_threads", "n_threads_batch", "numa", "kwargs"}  # kwargs: test_arguments.py, test_drop_in.py
    assert set(WORKS) | elsewhere == {name for name, row in INIT.items() if row.status == surface.WORKS}


@pytest.mark.parametrize("name, nth", [(name, nth) for name, values in WORKS.items() for nth in range(len(values))])
def test_an_argument(make, stock, plain_answer, lora, name, nth):
    arguments, answer = WORKS[name][nth], ANSWERS.get(name, complete_answer)
    if "lora_path" in arguments:
        arguments = {**arguments, "lora_path": lora}
    theirs = answer(stock(**arguments))
    if name in SHOWS and nth == 0:
        assert theirs != plain_answer(answer)
    for options in (UNPRUNED, LAYERED):
        llm = make(**options, **arguments)
        assert answer(llm) == theirs and not llm.last_prefill.pruned
    llm = make(**PRUNED, **arguments)
    _, usage = answer(llm)
    report = llm.last_prefill
    assert report.pruned and report.kept_tokens == report.prompt_tokens * 2 // 5
    assert usage["prompt_tokens"] == report.prompt_tokens == theirs[1]["prompt_tokens"]


@pytest.mark.parametrize("threads", [{"n_threads": 2}, {"n_threads_batch": 2}, {"n_threads": None}], ids=str)
def test_threads(make, stock, threads):
    """A short prompt: threads that share a core wait for each other in every layer."""
    options = {"asl_budget": 38, **threads}
    llm, tokens = make(**options), prompt(40)
    assert greedy(llm, tokens, 2) == greedy(make(asl_budget=38), tokens, 2) and llm.last_prefill.pruned
    theirs = stock(**threads)
    for name in ("n_threads", "n_threads_batch"):
        assert getattr(llm, name) == getattr(theirs, name)
        assert getattr(llama_cpp, f"llama_{name}")(llm.ctx) == getattr(theirs, name)


@pytest.mark.long
def test_numa(make, tiny_model):
    """In a process of its own: the setting is the process's."""
    code = (
        "import sys, asl_gguf, json; llm = asl_gguf.Llama(sys.argv[1], n_ctx=512, n_threads=1, n_threads_batch=1,"
        "asl_budget=38, numa=True); tokens = json.loads(sys.argv[2]); answer = llm.generate(tokens, temp=0.0);"
        "print(next(answer), next(answer), llm.last_prefill.pruned, llm.numa)"
    )
    arguments = [str(tiny_model("llama")), json.dumps(prompt(40))]
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    expected = greedy(make(asl_budget=38), prompt(40), 2)
    assert found.stdout.split() == [*map(str, expected), "True", str(llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE)]


@pytest.mark.parametrize("arguments, silent", [({}, True), ({"verbose": False}, True), ({"verbose": True}, False)])
def test_verbose(tiny_model, capfd, arguments, silent):
    with contextlib.closing(Llama(str(tiny_model("llama")), n_ctx=512, asl_budget=0.4, **arguments)):
        assert (capfd.readouterr().err == "") == silent


def test_an_overridden_training_context_is_what_n_ctx_0_takes(make, stock):
    arguments = {"n_ctx": 0, "kv_overrides": {"llama.context_length": 2048}}
    assert make(**arguments, **PRUNED).n_ctx() == stock(**arguments).n_ctx() == 2048


def test_a_pickled_copy_has_the_same_chunks(make):
    llm = make(asl_budget=40, asl_room=64, n_batch=400)
    with contextlib.closing(pickle.loads(pickle.dumps(llm))) as copy:
        assert copy._asl_session._params.n_batch == llm._asl_session._params.n_batch == 400
