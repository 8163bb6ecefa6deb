"""The keyword arguments of `llama_cpp.Llama`, typed, and the check that a call has no others."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

from ..errors import OptionTypeError
from ..native.bindings import llama_cpp


class LlamaArguments(TypedDict, total=False):
    """Those of llama-cpp-python 0.3.36 that `asl_gguf.Llama` does not name itself; a test compares them with the parent's."""

    n_gpu_layers: int
    split_mode: int
    main_gpu: int
    tensor_split: list[float] | None
    vocab_only: bool
    use_mmap: bool
    use_mlock: bool
    kv_overrides: dict[str, bool | int | float | str] | None
    seed: int
    n_batch: int
    n_ubatch: int
    n_threads: int | None
    n_threads_batch: int | None
    rope_scaling_type: int | None
    pooling_type: int
    attention_type: int
    rope_freq_base: float
    rope_freq_scale: float
    yarn_ext_factor: float
    yarn_attn_factor: float
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_orig_ctx: int
    logits_all: bool
    embedding: bool
    offload_kqv: bool
    flash_attn: bool
    op_offload: bool | None
    swa_full: bool | None
    no_perf: bool
    last_n_tokens_size: int
    lora_base: str | None
    lora_scale: float
    lora_path: str | None
    numa: bool | int
    chat_format: str | None
    chat_handler: Any
    draft_model: Any
    tokenizer: Any
    type_k: int | None
    type_v: int | None
    spm_infill: bool
    verbose: bool


_PARENT = inspect.signature(llama_cpp.Llama.__init__).parameters


def check_names(given: Iterable[str], own: Iterable[str]) -> None:
    """Raises OptionTypeError for an argument that neither this class nor its parent has: the parent would drop it silently.

    Args:
        own: names of this class.
    """
    known = {name for name, parameter in _PARENT.items() if parameter.kind is not parameter.VAR_KEYWORD} | set(own)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "see help(asl_gguf.Llama)"
            raise OptionTypeError(
                f"{name}: expected an argument of asl_gguf.Llama or llama_cpp.Llama, got an unknown one; {hint}"
            )


_ONCE = "ask once for each answer, with a seed of its own: a prompt that was prefilled is not prefilled again"
_OF_OTHERS = {"n": _ONCE, "best_of": _ONCE}
"""arguments of OpenAI's that the parent has no use for -> what to do"""


def refusing_unknown(cls: type) -> type:
    """A `Llama` whose completions name an argument that they do not have, and what to do: an OptionTypeError."""
    for name in ("create_completion", "create_chat_completion", "__call__"):
        setattr(cls, name, _refusing(getattr(cls, name)))
    return cls


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    known = set(inspect.signature(method).parameters)

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() - known:
            near = difflib.get_close_matches(name, known, 3, 0.6)
            hint = _OF_OTHERS.get(name) or (f"did you mean {' or '.join(near)}?" if near else "see its signature")
            raise OptionTypeError(f"{name}: expected an argument of {method.__name__}, got an unknown one; {hint}")
        return method(*args, **kwargs)

    return checked


def joined_signature(ours: Any) -> inspect.Signature:
    """The signature of a function with the parent's arguments in place of its **kwargs, for help() and completion."""
    signature = inspect.signature(ours)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own}
    theirs = [p for p in _PARENT.values() if p.name not in names and p.kind is p.KEYWORD_ONLY]
    return signature.replace(parameters=[*own, *theirs])
