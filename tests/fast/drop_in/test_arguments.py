"""`Llama`'s arguments, as editors, help() and callers see them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import asl_gguf
from asl_gguf import Llama
from asl_gguf.drop_in.arguments import LlamaArguments
from asl_gguf.drop_in.options import AslOptions
from asl_gguf.errors import OptionTypeError
from asl_gguf.native.bindings import llama_cpp


def names(function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def test_typed_arguments_are_the_parents():
    ours = {"self", "model_path", "n_ctx"}
    assert set(LlamaArguments.__annotations__) == set(names(llama_cpp.Llama.__init__)) - ours


def test_the_signature_has_all_arguments():
    found = names(Llama)
    assert set(found) >= set(names(llama_cpp.Llama.__init__)) - {"self"}
    assert {"asl_budget", *AslOptions.parse(0.5, {}).to_kwargs()} <= set(found)
    assert names(Llama.create_chat_completion) == names(llama_cpp.Llama.create_chat_completion)


def test_defaults_are_the_options_own():
    parameters = inspect.signature(Llama).parameters
    own = AslOptions.parse(0.5, {}).to_kwargs()
    for name in ("asl_decode_ctx", "asl_room", "asl_min_prompt", "asl_dequant", "asl_guard", "asl_full_kv"):
        assert parameters[name].default == own[name], name


def test_every_option_is_explained():
    """In the docstring, and in the table of docs/OPTIONS.md."""
    page = (Path(__file__).parents[3] / "docs/OPTIONS.md").read_text(encoding="utf-8")
    for name in ("asl_budget", *AslOptions.parse(0.5, {}).to_kwargs()):
        assert f" {name}: " in Llama.__doc__ and f"\n| `{name}` | " in page, name


@pytest.mark.parametrize("wrong, near", [("n_gpu_layer", "n_gpu_layers"), ("n_thread", "n_threads"), ("zzz", "help")])
@pytest.mark.parametrize("budget", [None, 0.2])
def test_a_mistyped_argument_is_refused(tiny_model, wrong, near, budget):
    with pytest.raises(OptionTypeError, match=f"{wrong}: expected an argument .*{near}"):
        Llama(str(tiny_model("llama")), asl_budget=budget, **{wrong: 99})


def test_dir_names_what_there_is():
    assert dir(asl_gguf) == sorted(asl_gguf.__all__)
    assert all(hasattr(asl_gguf, name) for name in dir(asl_gguf))
