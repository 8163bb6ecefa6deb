"""What works of `llama_cpp.Llama` while prompts are pruned: data, compared with the parent's signatures.

`python -m asl_gguf.drop_in.surface > docs/SURFACE.md` writes the table; tests/fast/drop_in/test_surface*.py justify its rows.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import (
    AdapterError,
    ContextFullError,
    LibraryError,
    ModelError,
    OptionError,
    OptionTypeError,
    PrefillCancelled,
    PromptError,
    StateError,
)
from ..native.bindings import llama_cpp
from .options import unprunable_use

WORKS, FALLBACK = "works", "fallback"


@dataclass(frozen=True)
class Row:
    """One method or keyword."""

    status: str
    """WORKS, or FALLBACK: answered from the full cache, announced by PruningDisabledWarning"""
    note: str = ""
    reason: str = ""
    """what the warning says"""
    refused: Mapping[type[Exception], str] | None = None
    """uses that this package refuses by an error of its own: error -> which use"""

    def to_cells(self) -> tuple[str, str]:
        """Markdown of status and remarks."""
        refused = [f"`{error.__name__}`: {use}" for error, use in (self.refused or {}).items()]
        remarks = [f"warns: {self.reason}" if self.reason else "", self.note, *refused]
        return self.status, "; ".join(filter(None, remarks))


def works(note: str = "", refused: Mapping[type[Exception], str] | None = None) -> Row:
    return Row(WORKS, note, refused=refused)


def fallback(use: str, note: str = "") -> Row:
    """The full cache serves what needs this keyword of `Llama`."""
    reason = unprunable_use({use: True})
    assert reason is not None, use
    return Row(FALLBACK, note, reason)


_ANSWER_TOO_LONG: dict[type[Exception], str] = {ContextFullError: "prompt and answer need more KV cells than there are"}
_LESS_BY_HAND = "`n_tokens` was set to less than the pruned prompt"
_OTHER_BY_HAND = f"{_LESS_BY_HAND}, or to more than was evaluated"
_NO_GPU = works("not checked on a GPU")
_EMBEDDING = fallback("embedding", "needs embedding=True, as the parent's")
_LOGPROBS = works(
    "of the answer's tokens up to a stop string, from the pruned cache, without logits_all, which the parent needs, and the "
    "prompt's with echo=True: without it an OptionError. One chunk of a stream may have several tokens"
)

METHODS = {
    "__call__": works("as create_completion"),
    "close": works("calls that need the model are a StateError from then on"),
    "create_chat_completion": works(),
    "create_chat_completion_openai_v1": works("needs openai, as the parent's; checked with a stand-in"),
    "create_completion": works(),
    "create_embedding": _EMBEDDING,
    "ctx": works("the decode context: `llama_n_ctx` of it is `n_cells`, and the kept tokens are in its cells"),
    "detokenize": works("", {PromptError: "tokens of no vocabulary"}),
    "embed": _EMBEDDING,
    "eval": works(
        "prunes nothing",
        {ContextFullError: "more tokens than free KV cells, or than n_ctx", StateError: _OTHER_BY_HAND},
    ),
    "eval_logits": fallback("logits_all", "means nothing without logits_all=True, as the parent's"),
    "eval_tokens": works("the whole prompt, dropped tokens too"),
    "from_pretrained": works("takes `asl_*` options; needs huggingface_hub, as the parent's; checked with a stand-in"),
    "generate": works("tokens sent into it need logits_all=True, as with the parent"),
    "load_state": works("", {StateError: "a state of another model file, version, setting or adapter"}),
    "logits_to_logprobs": works(),
    "longest_token_prefix": works(),
    "model": works(),
    "n_ctx": works("the number given, rounded up to 256s as by llama.cpp; prompts may be as long"),
    "n_embd": works(),
    "n_vocab": works(),
    "pooling_type": works(),
    "reset": works("forgets the K/V of `asl_full_kv` too"),
    "sample": works(
        "after generate its sampler counts, not the keywords, as with the parent",
        {StateError: "there are no logits; the parent ends the process"},
    ),
    "save_state": works("", {StateError: _LESS_BY_HAND}),
    "set_cache": works(),
    "set_seed": works(),
    "token_bos": works(),
    "token_eos": works(),
    "token_nl": works(),
    "tokenize": works(),
    "tokenizer": works("its calls after `close` are a StateError; the parent's end the process"),
}

INIT = {
    "model_path": works("the name of a pulled model, too", {ModelError: "no GGUF that llama.cpp can load"}),
    "n_gpu_layers": works("checked with CUDA: `tests/gpu`"),
    "split_mode": _NO_GPU,
    "main_gpu": _NO_GPU,
    "tensor_split": works(_NO_GPU.note, {OptionError: "more shares than llama.cpp has devices"}),
    "vocab_only": fallback("vocab_only"),
    "use_mmap": works(),
    "use_mlock": works(),
    "kv_overrides": works(
        "tried with one token",
        {
            OptionError: "a key or value that llama_cpp cannot hand on",
            ModelError: "values that the model cannot be computed with; the parent ends the process",
        },
    ),
    "seed": works("0 too, which the parent takes for none"),
    "n_ctx": works("longest prompt + answer; the KV cache is smaller", {OptionError: "not a number of tokens"}),
    "n_batch": works("the prefill's chunks, too", {OptionError: "less than 1"}),
    "n_ubatch": works("the prefill's chunks, too"),
    "n_threads": works(),
    "n_threads_batch": works(),
    "rope_scaling_type": works(),
    "pooling_type": works(),
    "attention_type": Row(FALLBACK, "a causal one is pruned", "attention that is not causal"),
    "rope_freq_base": works(),
    "rope_freq_scale": works(),
    "yarn_ext_factor": works(),
    "yarn_attn_factor": works(),
    "yarn_beta_fast": works(),
    "yarn_beta_slow": works(),
    "yarn_orig_ctx": works(),
    "logits_all": fallback("logits_all"),
    "embedding": fallback("embedding"),
    "offload_kqv": _NO_GPU,
    "flash_attn": works(),
    "op_offload": _NO_GPU,
    "swa_full": works("False: layers with a sliding window have cells for it alone"),
    "no_perf": works(),
    "last_n_tokens_size": works(),
    "lora_base": works("unused, as by the parent"),
    "lora_scale": works(),
    "lora_path": works("", {AdapterError: "no file, or no adapter of this model; the parent ends the process"}),
    "numa": works(),
    "chat_format": works("functionary needs transformers, as the parent's: not checked"),
    "chat_handler": works("one that calls eval itself, as multimodal ones do, has nothing pruned"),
    "draft_model": fallback("draft_model", "prompts longer than n_batch work, where the parent raises"),
    "tokenizer": works("LlamaHFTokenizer needs transformers, as the parent's: not checked"),
    "type_k": works("", {OptionError: "none of ggml's types; the parent ends the process"}),
    "type_v": works("", {OptionError: "none of ggml's types, or a quantised one without flash_attn=True"}),
    "spm_infill": works(),
    "verbose": works("False unless given"),
    "kwargs": works(
        "through `pruned`, names that the parent does not know are ignored, as by the parent",
        {
            OptionTypeError: "a name that neither class knows; the nearest ones are named",
            OptionError: "an unknown `asl_*` name, or a value out of its domain",
        },
    ),
}

_SAMPLING = {
    "top_k": works(),
    "top_p": works(),
    "min_p": works(),
    "typical_p": works(),
    "repeat_penalty": works(),
    "frequency_penalty": works(),
    "presence_penalty": works(),
    "tfs_z": works("without effect, as the parent's"),
    "mirostat_mode": works(),
    "mirostat_tau": works(),
    "mirostat_eta": works(),
    "logits_processor": works("sees the whole prompt's token ids"),
    "grammar": works(),
}

_COMPLETION = {
    **_SAMPLING,
    "temperature": works(),
    "max_tokens": works(
        "exceeded by 3 at most to finish a character; the parent goes on where no character comes of it",
        _ANSWER_TOO_LONG,
    ),
    "stop": works(
        "the first one in the text ends it, as the parent's streams; its plain answers end at the first of the list"
    ),
    "stream": works(
        "prefills when the first chunk is asked for, as the parent; has the plain answer's text, where the parent drops characters",
        {StateError: "another prompt, a reset or a state came between two chunks"},
    ),
    "seed": works(),
    "model": works(),
    "logit_bias": works("together with logits_processor too; the parent drops both then"),
    "logprobs": _LOGPROBS,
}

KEYWORDS: dict[str, dict[str, Row]] = {
    "__init__": INIT,
    "create_completion": {
        "prompt": works(
            "text or token ids", {PromptError: "no tokens, or too many for n_ctx", PrefillCancelled: "`asl_progress`"}
        ),
        "suffix": works("marks prefix, suffix and middle by token 0, as the parent's"),
        "echo": works("the whole prompt, dropped tokens too"),
        "stopping_criteria": works("sees the whole prompt's token ids"),
        **_COMPLETION,
    },
    "create_chat_completion": {
        "messages": works(
            "the next turn goes on from the pruned cache",
            {
                PromptError: "too many tokens for n_ctx, or the template changes a message that `asl_protect` names",
                PrefillCancelled: "`asl_progress`",
            },
        ),
        "functions": works(),
        "function_call": works(),
        "tools": works(),
        "tool_choice": works(),
        "response_format": works(
            "a schema that no grammar can be made of is an OptionError; the parent takes any JSON then"
        ),
        "top_logprobs": _LOGPROBS,
        **_COMPLETION,
    },
    "generate": {
        "tokens": works(
            "",
            {
                PromptError: "no tokens, or too many for n_ctx",
                ContextFullError: "no KV cells are left",
                PrefillCancelled: "`asl_progress`",
                StateError: "another prompt, a reset or a state came between two tokens of the answer",
            },
        ),
        "temp": works(),
        "reset": works(
            "False prunes nothing",
            {ContextFullError: "more tokens than free KV cells", StateError: _OTHER_BY_HAND},
        ),
        "penalize_nl": works("without effect, as the parent's"),
        "stopping_criteria": works("sees the whole prompt's token ids"),
        **_SAMPLING,
    },
    "sample": {
        "temp": works(),
        "penalize_nl": works("without effect, as the parent's"),
        "idx": works("of the last token, unless logits_all=True, as the parent's"),
        **_SAMPLING,
    },
}
"""of these methods, and of `__call__`, which has those of create_completion"""

SAME_KEYWORDS = {"__call__": "create_completion"}


def parent_methods() -> list[str]:
    """Public methods and properties of the parent, and `__call__`."""
    return [name for name in dir(llama_cpp.Llama) if name == "__call__" or not name.startswith("_")]


def parent_keywords(method: str) -> list[str]:
    """Parameters of one of its methods, in its order."""
    names = list(inspect.signature(getattr(llama_cpp.Llama, method)).parameters)
    return names[1:] if names[0] == "self" else names


def sections() -> Iterator[tuple[str, dict[str, Row]]]:
    """Heading and rows of each table, in the parent's order.

    Raises:
        LibraryError: the data lacks a name of the parent, or has one that it lacks.
    """
    yield "Methods and properties", _in_order("llama_cpp.Llama", parent_methods(), METHODS)
    for method, rows in KEYWORDS.items():
        heading = "Llama" if method == "__init__" else method
        yield f"Arguments of `{heading}`", _in_order(method, parent_keywords(method), rows)
    for method, other in SAME_KEYWORDS.items():
        _in_order(method, parent_keywords(method), KEYWORDS[other])


def _in_order(what: str, names: list[str], rows: dict[str, Row]) -> dict[str, Row]:
    if difference := sorted(set(names) ^ set(rows)):
        missing = [name for name in difference if name in names]
        raise LibraryError(
            f"{what} of llama-cpp-python {llama_cpp.__version__}: expected a row for each name and no other, "
            f"got none for {missing} and too many for {sorted(set(difference) - set(missing))}"
        )
    return {name: rows[name] for name in names}


_INTRODUCTION = """\
# What works of `llama_cpp.Llama`

Every public method and argument of the parent (llama-cpp-python {version}), while prompts are pruned. Written by
`python -m asl_gguf.drop_in.surface`; `tests/fast/drop_in/test_surface*.py` justify it row by row.
`tests/slow/test_parent_suite.py` runs the parent's own tests on this class, with and without a budget, and lists those
that need a model to be downloaded.

- **works**: as the parent does. With nothing pruned (`asl_budget=1.0`, `asl_dequant=False`) the results are equal.
- **fallback**: answers come from the full KV cache, as the parent's. A `PruningDisabledWarning` says why, and so does
  `last_prefill.reason`.
- Nothing is refused as a whole. An error is named where this package refuses a use with one of its own; the parent's
  errors stay as they are.

With `asl_budget=None` everything is the parent's, except that `verbose` is False and that the errors of `Llama(...)`
are typed: `ModelError`, `AdapterError`, `OptionError`, and `OptionTypeError` for an argument of the wrong type. Each is
an instance of what the parent raises, too. What a row says of `stop`, `seed`, `logit_bias`, `response_format`,
`max_tokens`, `sample`, `eval` and `close` holds there as well, and so does what is said below of calls, values and
adapters.

One call runs at a time: other threads wait for it, and come in between two chunks of a stream, which then ends with a
`StateError` (without a budget it goes on from what is there then, as the parent's does). A call from within a callback
(`asl_progress`, a logits processor, a stopping criterion, a policy) is a `StateError`; the model's own methods
(`tokenize`, `n_vocab` and their like) may be called there. `close` waits for other threads that tokenise. Messages,
tokens and options are those at the time of the call, whenever a stream's first chunk is read.

Values are checked at the call: numbers of the sampler, of rope and seeds outside C's types, NaN and infinity are an
`OptionError`, values of another type an `OptionTypeError`, tokens of no vocabulary and texts that UTF-8 cannot hold a
`PromptError`. The parent cuts them to size, drops them, or fails when the answer is there. Numbers of NumPy are taken.

K/V belong to the LoRA adapters and control vectors that were set when they were computed, by whatever call: a prompt
under others begins anew, without a `reset` too, and saved states of others are a `StateError`. The parent reuses them.

One call gives one answer: `n` and `best_of` of OpenAI's interface are no arguments of the parent, whose server drops
them without a word. Like any unknown argument of a completion they are an `OptionTypeError` (a TypeError, as the
parent's). Ask once for each answer with a `seed` of its own: the prompt is not prefilled again. `asl-gguf serve` has
`n`. With `verbose=True`, what was prefilled layer by layer is counted once in llama.cpp's timings, and the parent's
line about a cached prompt is replaced by the report.
"""


def to_markdown() -> str:
    """docs/SURFACE.md"""
    parts = [_INTRODUCTION.format(version=llama_cpp.__version__)]
    for heading, rows in sections():
        lines = [f"| `{name}` | {' | '.join(row.to_cells())} |" for name, row in rows.items()]
        parts.append("\n".join([f"## {heading}", "", "| name | status | remarks |", "|---|---|---|", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
