"""Arguments of the parent that it cannot use: typed errors that name the argument, each an instance of the parent's too."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import AdapterError, AslError, Llama, ModelError, OptionError, OptionTypeError
from harness import llama_cpp, prompt
from tiny_llama import greedy

Q8_0, Q4_0 = 8, 2
REFUSED: list[tuple[dict[str, Any], type[AslError], str]] = [
    (
        {"kv_overrides": {"llama.rope.freq_base": [1]}},
        OptionError,
        r"bool, int, float or str .*got \[1\] for llama.rope",
    ),
    (
        {"kv_overrides": {"general.name": "x" * 129}},
        OptionError,
        "str of at most 128 bytes .*got 'xxx.* for general.name",
    ),
    ({"kv_overrides": {"k" * 200: 1}}, OptionError, "each key of less than 128 bytes, got a longer key"),
    ({"kv_overrides": {"llama.block_count": 99}}, ModelError, "check the file and kv_overrides"),
    ({"kv_overrides": ["a=1"]}, OptionTypeError, r"kv_overrides: expected Optional\[Dict.*got \['a=1'\]"),
    ({"tensor_split": [0.1] * 1000}, OptionError, r"tensor_split: expected at most \d+ shares, .*, got 1000"),
    ({"tensor_split": 3}, OptionTypeError, r"tensor_split: expected Optional\[List\[float\]\], got 3"),
    ({"type_v": Q8_0}, OptionError, "type_v: expected flash_attn=True with the quantised type Q8_0, got False"),
    ({"type_k": Q4_0, "type_v": Q4_0}, OptionError, "type_v: expected flash_attn=True with the quantised type Q4_0"),
    ({"type_k": "q8_0"}, OptionTypeError, r"type_k: expected Optional\[int\], got 'q8_0'"),
    ({"n_batch": 0}, OptionError, "n_batch: expected an integer from 1 to 2147483647, got 0"),
    ({"n_batch": "512"}, OptionTypeError, "n_batch: expected int, got '512'"),
    ({"n_threads": 2.0}, OptionTypeError, r"n_threads: expected Optional\[int\], got 2.0"),
    ({"n_gpu_layers": "all"}, OptionTypeError, "n_gpu_layers: expected int, got 'all'"),
    ({"rope_freq_base": "auto", "n_threads": 1}, OptionTypeError, "rope_freq_base: expected float, got 'auto'"),
    ({"lora_path": 3}, OptionTypeError, "lora_path: expected a path as a str, or None, got 3"),
]
ENDS_THE_PROCESS: list[tuple[dict[str, Any], type[AslError], str]] = [
    ({"type_k": 99}, OptionError, r"type_k: expected one of the ggml types F32 \(0\), .*Q8_0 \(8\), .*, got 99"),
    ({"type_v": -1}, OptionError, "type_v: expected one of the ggml types .*, got -1"),
    ({"type_k": 5}, OptionError, "type_k: expected one of the ggml types .*, got 5"),  # a type that ggml has given up
    ({"n_batch": -1}, OptionError, "n_batch: expected an integer from 1 to 2147483647, got -1"),
    ({"n_ctx": 2**31}, OptionError, r"n_ctx: expected a number of tokens below 2\*\*31, .*, got 2147483648"),
    (
        {"lora_path": "missing.gguf"},
        AdapterError,
        "lora_path: expected a GGUF file .*, got missing.gguf, which is no file",
    ),
    ({"lora_path": "."}, AdapterError, r"lora_path: expected a GGUF file .*, got \., which is no file"),
]
"""with the parent: an abort, a crash, or more memory than there is"""


@pytest.mark.parametrize("budget", [0.2, None])
@pytest.mark.parametrize("arguments, error, message", REFUSED + ENDS_THE_PROCESS, ids=str)
def test_refused(make, arguments, error, message, budget):
    with pytest.raises(error, match=message):
        make(asl_budget=budget, **arguments)


@pytest.mark.parametrize("arguments", [case[0] for case in REFUSED], ids=str)
def test_code_that_catches_the_parents_error_goes_on_working(make, arguments):
    with pytest.raises(Exception) as theirs:
        make(llama_cpp.Llama, **arguments)
    with pytest.raises(type(theirs.value)):
        make(**arguments)


@pytest.mark.parametrize("budget", [0.2, None])
@pytest.mark.parametrize("content", ["text", "model", "part"])
def test_a_file_that_is_no_adapter(make, tiny_model, tmp_path, budget, content):
    """The parent goes on with the null pointer that llama.cpp returns."""
    path, model = tmp_path / "lora.gguf", Path(tiny_model("llama"))
    data = model.read_bytes()
    path.write_bytes({"text": b"<!doctype html>", "model": data, "part": data[:1000]}[content])
    reason = {
        "text": "invalid magic characters",
        "model": "expect general.type to be 'adapter'",
        "part": "failed to read",
    }
    said = f"adapter for {model.name}, got {path}: .*{reason[content]}.*; check that it was made for this model"
    for error in (AdapterError, ModelError, RuntimeError):
        with pytest.raises(error, match=said):
            make(asl_budget=budget, lora_path=str(path))
    gc.collect()
    assert greedy(make(asl_budget=0.2), prompt(300))


@pytest.mark.parametrize("budget", [0.2, None])
def test_no_memory_for_a_context(make, monkeypatch, budget):
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_init_from_model", lambda *_: None)
    cells = 1024 if budget is None else 512
    with pytest.raises(OptionError, match=f"memory for a context of {cells} KV cells, .*lower n_ctx, asl_budget"):
        make(n_ctx=1024, asl_budget=budget, asl_room=200)


def test_a_failed_object_frees_its_model_at_once(make, monkeypatch):
    """Left to the garbage collector, the model may be freed before the context, which crashes."""
    freed: list[Any] = []
    free = llama_cpp.llama_cpp.llama_model_free
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_free", lambda model: (freed.append(model), free(model))[1])
    monkeypatch.setattr(llama_cpp._internals, "LlamaBatch", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(asl_budget=0.2)
    assert len(freed) == 1


def test_arguments_that_the_parent_takes_are_not_refused(make):
    """Types are looked at only after the parent has failed."""
    import numpy as np

    llm = make(asl_budget=0.2, n_batch=np.int64(64), n_threads=np.int32(1), rope_freq_base=0)
    assert isinstance(llm, Llama) and greedy(llm, prompt(300))
