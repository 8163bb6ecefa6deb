"""The table of asl_gguf/drop_in/surface.py: whole, up to date, and true of methods, fallbacks and refused uses.

Arguments that work: test_surface_init.py, test_surface_completion.py and test_surface_chat.py.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from asl_gguf import (
    AdapterError,
    AslError,
    ContextFullError,
    LibraryError,
    Llama,
    ModelError,
    OptionError,
    OptionTypeError,
    PrefillCancelled,
    PromptError,
    PruningDisabledWarning,
    StateError,
)
from asl_gguf.drop_in import surface
from harness import llama_cpp, prompt
from surface_cases import LAYERED, PROMPT, PRUNED, UNPRUNED
from tiny_llama import TEXT, chat, greedy

pytestmark = pytest.mark.usefixtures("short_prompts_count")

DOCUMENT = Path(__file__).parents[3] / "docs" / "SURFACE.md"
INIT = surface.KEYWORDS["__init__"]


def test_the_document_is_what_the_code_generates():
    found = DOCUMENT.read_text(encoding="utf-8")
    assert found == surface.to_markdown(), "run python -m asl_gguf.drop_in.surface > docs/SURFACE.md"


def test_names_come_from_the_parent():
    assert surface.parent_keywords("__init__")[:2] == ["model_path", "n_gpu_layers"]
    assert surface.parent_keywords("from_pretrained")[0] == "repo_id"
    assert {"__call__", "ctx", "generate", "from_pretrained"} < set(surface.parent_methods())
    assert len(list(surface.sections())) == 1 + len(surface.KEYWORDS)


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "gone"])
@pytest.mark.parametrize("rows", [surface.METHODS, *surface.KEYWORDS.values()], ids=["methods", *surface.KEYWORDS])
def test_a_name_too_few_or_too_many_is_an_error(monkeypatch, rows, missing):
    name = next(iter(rows)) if missing else "no_such_name"
    if missing:
        monkeypatch.delitem(rows, name)
    else:
        monkeypatch.setitem(rows, name, surface.works())
    with pytest.raises(LibraryError, match=name):
        surface.to_markdown()


def completed(llm: Any) -> Any:
    llm.create_completion(PROMPT, max_tokens=4, temperature=0.0)
    return llm


LOGITS = np.float32([[1.0, 2.0, 4.0]])

# Methods that say the same of a pruned prompt as of a whole one
SAME: dict[str, Callable[[Any], Any]] = {
    "close": lambda llm: (llm.close(), llm.close()),
    "detokenize": lambda llm: llm.detokenize(prompt(50), prev_tokens=[1], special=True),
    "eval_tokens": lambda llm: list(completed(llm).eval_tokens)[: len(llm.tokenize(PROMPT.encode()))],
    "logits_to_logprobs": lambda llm: llm.logits_to_logprobs(LOGITS).tolist(),
    "longest_token_prefix": lambda llm: llm.longest_token_prefix([1, 2, 3], [1, 2, 4]),
    "model": lambda llm: llama_cpp.llama_model_n_params(llm.model),
    "n_ctx": lambda llm: llm.n_ctx(),
    "n_embd": lambda llm: llm.n_embd(),
    "n_vocab": lambda llm: llm.n_vocab(),
    "pooling_type": lambda llm: llm.pooling_type(),
    "reset": lambda llm: (completed(llm).reset(), llm.n_tokens, list(llm.eval_tokens)),
    "token_bos": lambda llm: llm.token_bos(),
    "token_eos": lambda llm: llm.token_eos(),
    "token_nl": lambda llm: llm.token_nl(),
    "tokenize": lambda llm: llm.tokenize(b"<|im_start|>the rain", add_bos=False, special=True),
    "tokenizer": lambda llm: llm.tokenizer().encode("the rain"),
}


@pytest.mark.parametrize("name", SAME)
def test_a_method_that_does_not_depend_on_pruning(make, stock, name):
    assert SAME[name](make(**PRUNED)) == SAME[name](stock())


def test_every_method_is_tried():
    here = {"create_chat_completion_openai_v1", "create_embedding", "ctx", "embed", "eval", "eval_logits"}
    here |= {"from_pretrained", "generate", "sample", "set_seed"}
    elsewhere = {"__call__", "create_completion", "create_chat_completion"}  # test_surface_completion, _chat
    elsewhere |= {"load_state", "save_state", "set_cache"}  # test_saving
    assert set(SAME) | here | elsewhere == set(surface.METHODS)


def test_ctx_is_the_decode_context(make):
    llm = completed(make(asl_room=64, **PRUNED))
    memory = llama_cpp.llama_get_memory(llm.ctx)
    assert llama_cpp.llama_n_ctx(llm.ctx) == llm.n_cells < llm.n_ctx()
    assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == llm.n_tokens - 1  # positions are the whole prompt's


@pytest.mark.parametrize("options", [UNPRUNED, LAYERED], ids=["unpruned", "layered"])
@pytest.mark.parametrize("reset", [{}, {"reset": False}], ids=["", "no reset"])
def test_generate_and_eval_and_sample(make, stock, options, reset):
    found = []
    for llm in (make(**options), stock()):
        answer = greedy(llm, prompt(300))
        answer += list(islice(llm.generate([5, 6, 7], temp=0.0, **reset), 4))
        llm.eval([8, 9])
        llm.set_seed(4)
        found.append([*answer, llm.sample(temp=1.0), llm.sample(top_k=3, repeat_penalty=1.2), llm.n_tokens])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"temp": 0.0, "reset": False},
        (40, 0.95, 0.05, 1.0, 0.0, 1.0, False),
    ],
    ids=["keyword", "positional"],
)
def test_generate_without_a_reset_goes_on(make, arguments):
    """As eval and sample do, after a pruned prompt."""
    llm, other, turn = make(**PRUNED), make(**PRUNED), prompt(20)
    for target in (llm, other):
        greedy(target, prompt(300), 1)
    other.eval(turn)
    by_keyword = isinstance(arguments, dict)
    answer = llm.generate(turn, **arguments) if by_keyword else llm.generate(turn, *arguments)
    assert next(answer) == other.sample(temp=0.0) and llm.n_tokens == 320


def test_tokens_sent_into_generate(make, stock):
    """They need the logits of each, in the parent too."""
    with pytest.warns(PruningDisabledWarning, match="logits_all"):
        ours = make(logits_all=True, **PRUNED)
    found = []
    for llm in (ours, stock(logits_all=True)):
        answer = llm.generate(prompt(300), temp=0.0)
        found.append([next(answer), answer.send([20, 21]), llm.sample(temp=0.0, idx=301), next(answer), llm.n_tokens])
    assert found[0] == found[1]


# Fallbacks: announced, and the parent's answers

FALLBACKS: dict[str, dict[str, Any]] = {
    "logits_all": {"logits_all": True},
    "embedding": {"embedding": True},
    "vocab_only": {"vocab_only": True},
    "draft_model": {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=4)},
    "attention_type": {"attention_type": llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL},
}


def fallback_answer(llm: Any, name: str) -> Any:
    tokens = llm.tokenize(PROMPT.encode())
    return tokens if name == "vocab_only" else [tokens, greedy(llm, tokens)]


@pytest.mark.parametrize(
    "name",
    [name for name, row in INIT.items() if row.status == surface.FALLBACK],
)
def test_a_fallback_is_announced_and_answers_as_the_parent(make, stock, name):
    theirs = fallback_answer(stock(**FALLBACKS[name]), name)
    for options in (PRUNED, LAYERED):
        with pytest.warns(PruningDisabledWarning) as warned:
            llm = make(**options, **FALLBACKS[name])
        assert len(warned) == 1 and INIT[name].reason in str(warned[0].message)
        assert fallback_answer(llm, name) == theirs
        assert name == "vocab_only" or (llm.last_prefill.reason in str(warned[0].message) and llm.n_cells == 1024)
        assert name == "vocab_only" or not llm.last_prefill.pruned


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_logprobs(make, stock, stream, echo):
    """Equal to the parent's with logits_all=True; without it and a budget the parent's error. With one: test_logprobs.py."""
    options = {"max_tokens": 5, "temperature": 0.0, "logprobs": 2, "echo": echo, "stream": stream}
    with pytest.warns(PruningDisabledWarning, match="logits_all"):
        ours = make(logits_all=True, **PRUNED)
    found = []
    for llm in (ours, stock(logits_all=True)):
        parts = llm.create_completion(PROMPT, **options)
        found.append([part["choices"] for part in (parts if stream else [parts])])
        chat_parts = llm.create_chat_completion(
            chat(PROMPT), max_tokens=3, logprobs=True, top_logprobs=2, seed=1, stream=stream
        )
        found[-1] += [part["choices"] for part in (chat_parts if stream else [chat_parts])]
        found[-1].append(np.array(llm.eval_logits).tolist())
    assert found[0] == found[1] and found[0][0][0]["logprobs"]
    for llm in (make(), stock()):
        with pytest.raises(ValueError, match="logprobs is not supported for models created with logits_all=False"):
            list(llm.create_completion(PROMPT, **options))
        with pytest.raises(ValueError, match="logprobs is not supported"):
            list(llm.create_chat_completion(chat(PROMPT), logprobs=True, top_logprobs=2, stream=stream))


@pytest.mark.parametrize("pooling", ["NONE", "MEAN", "LAST"])
def test_embeddings(make, stock, pooling):
    """Equal to the parent's with embedding=True; without it the parent's error."""
    arguments = {"embedding": True, "pooling_type": getattr(llama_cpp, f"LLAMA_POOLING_TYPE_{pooling}")}
    with pytest.warns(PruningDisabledWarning, match="embedding"):
        ours = make(**PRUNED, **arguments)
    found = [
        [
            llm.embed("the rain", normalize=True),
            llm.embed(["the rain", "in the log"], return_count=True),
            llm.create_embedding(["a", PROMPT], model="name"),
        ]
        for llm in (ours, stock(**arguments))
    ]
    assert found[0] == found[1]
    for llm in (make(**PRUNED), stock()):
        for embed in (llm.embed, llm.create_embedding):
            with pytest.raises(RuntimeError, match="must be created with embedding=True"):
                embed("the rain")


# Optional packages

OPENAI_MISSING = "To use create_chat_completion_openai_v1, you must install the openai package"
HUB_MISSING = "Llama.from_pretrained requires the huggingface-hub package"


def test_openai_types(make, stock, monkeypatch):
    """Without openai the parent's error; with a stand-in that keeps what it is given, the chat's answer."""
    llm, options = make(**PRUNED), {"max_tokens": 4, "temperature": 0.0}
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setitem(sys.modules, "openai.types.chat", None)
    for target in (llm, stock()):
        with pytest.raises(ImportError, match=OPENAI_MISSING):
            target.create_chat_completion_openai_v1(chat(PROMPT), **options)
    stand_in = types.SimpleNamespace(ChatCompletion=dict, ChatCompletionChunk=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "openai.types.chat", stand_in)
    whole = llm.create_chat_completion_openai_v1(chat(PROMPT), **options)
    assert llm.last_prefill.pruned
    parts = [part.choices for part in llm.create_chat_completion_openai_v1(chat(PROMPT), stream=True, **options)]
    text = "".join(choices[0]["delta"].get("content", "") for choices in parts)
    assert text == whole["choices"][0]["message"]["content"] != ""


class HubFileSystem:
    """The files of one repository."""

    def ls(self, repo_id: str, recursive: bool) -> list[dict[str, str]]:
        return [{"name": f"{repo_id}/tiny.gguf"}, {"name": f"{repo_id}/README.md"}]


def test_from_pretrained(make, tiny_model, monkeypatch):
    """Without huggingface_hub the parent's error; with a stand-in for it, this class with its options."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for cls in (Llama, llama_cpp.Llama):
        with pytest.raises(ImportError, match=HUB_MISSING):
            cls.from_pretrained("someone/tiny", "*.gguf")
    downloads = []

    def download(**kwargs: Any) -> str:
        downloads.append((kwargs["repo_id"], kwargs["filename"]))
        return str(tiny_model("llama"))

    hub = types.SimpleNamespace(hf_hub_download=download, HfFileSystem=HubFileSystem)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    utils = types.SimpleNamespace(validate_repo_id=lambda repo_id: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    llm = Llama.from_pretrained("someone/tiny", "*.gguf", n_ctx=1024, n_threads=1, n_threads_batch=1, **PRUNED)
    assert type(llm) is Llama and set(downloads) == {("someone/tiny", "tiny.gguf")}
    assert greedy(llm, prompt(300)) == greedy(make(**PRUNED), prompt(300)) and llm.last_prefill.pruned
    llm.close()


# Uses that this package refuses


def call(method: str, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda make: list(getattr(make(asl_decode_ctx=256, **PRUNED), method)(*args, **kwargs))


def cancelled(method: str, *args: Any) -> Callable[[Any], Any]:
    return lambda make: list(getattr(make(asl_progress=lambda *_: False, **PRUNED), method)(*args))


def after_fewer_by_hand(method: str, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    def use(make: Any) -> Any:
        llm = completed(make(**PRUNED))
        llm.n_tokens = 20
        return list(getattr(llm, method)(*args, **kwargs))

    return use


def read_after_a_reset(method: str, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    def use(make: Any) -> Any:
        llm = make(**PRUNED)
        answer = getattr(llm, method)(*args, **kwargs)
        next(answer)
        llm.reset()
        return list(answer)

    return use


REFUSED: dict[tuple[str, str, type[Exception]], Callable[[Any], Any]] = {
    ("", "eval", ContextFullError): call("eval", prompt(257)),
    ("", "eval", StateError): after_fewer_by_hand("eval", prompt(5)),
    ("", "detokenize", PromptError): call("detokenize", [-1]),
    ("", "sample", StateError): call("sample"),
    ("", "save_state", StateError): after_fewer_by_hand("save_state"),
    ("__init__", "model_path", ModelError): lambda make: Llama("no such file", **PRUNED),
    ("__init__", "tensor_split", OptionError): lambda make: make(tensor_split=[0.01] * 99),
    ("__init__", "kv_overrides", OptionError): lambda make: make(kv_overrides={"a": None}),
    ("__init__", "kv_overrides", ModelError): lambda make: make(kv_overrides={"llama.block_count": 0}),
    ("__init__", "n_ctx", OptionError): lambda make: make(n_ctx=-1),
    ("__init__", "n_batch", OptionError): lambda make: make(n_batch=0),
    ("__init__", "lora_path", AdapterError): lambda make: make(lora_path="no such file"),
    ("__init__", "type_k", OptionError): lambda make: make(type_k=99),
    ("__init__", "type_v", OptionError): lambda make: make(type_v=8),
    ("__init__", "kwargs", OptionError): lambda make: make(asl_budgets=1),
    ("__init__", "kwargs", OptionTypeError): lambda make: make(n_gpu_layer=1),
    ("create_completion", "prompt", PromptError): call("create_completion", prompt(1024)),
    ("create_completion", "prompt", PrefillCancelled): cancelled("create_completion", PROMPT),
    ("create_completion", "stream", StateError): read_after_a_reset("create_completion", PROMPT, stream=True),
    ("create_completion", "max_tokens", ContextFullError): call("create_completion", PROMPT, max_tokens=230),
    ("create_chat_completion", "max_tokens", ContextFullError): call(
        "create_chat_completion", chat(PROMPT), max_tokens=230
    ),
    ("create_chat_completion", "messages", PromptError): call("create_chat_completion", chat(TEXT * 3)),
    ("create_chat_completion", "messages", PrefillCancelled): cancelled("create_chat_completion", chat(PROMPT)),
    ("create_chat_completion", "stream", StateError): read_after_a_reset(
        "create_chat_completion", chat(PROMPT), stream=True
    ),
    ("generate", "tokens", PromptError): call("generate", []),
    ("generate", "tokens", ContextFullError): call("generate", prompt(700)),
    ("generate", "tokens", PrefillCancelled): cancelled("generate", prompt(300)),
    ("generate", "tokens", StateError): read_after_a_reset("generate", prompt(300)),
    ("generate", "reset", ContextFullError): call("generate", prompt(257), reset=False),
    ("generate", "reset", StateError): after_fewer_by_hand("generate", prompt(5), reset=False),
}


@pytest.mark.parametrize("use", REFUSED, ids=lambda use: f"{use[0]} {use[1]} {use[2].__name__}")
def test_a_refused_use(make, use):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(use[2]) as caught:
            REFUSED[use](make)
    assert isinstance(caught.value, AslError)


def test_every_refused_use_is_tried():
    tables = {"": surface.METHODS, **surface.KEYWORDS}
    listed = {
        (part, name, error) for part in tables for name, row in tables[part].items() for error in row.refused or ()
    }
    saving = {use for use in listed if use[1] == "load_state"}  # test_saving.py
    assert listed - saving == set(REFUSED)
