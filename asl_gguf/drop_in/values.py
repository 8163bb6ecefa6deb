"""Values that a call hands on to C: numbers in their C type's range, tokens in the vocabulary; typed errors for others."""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError, OptionTypeError, PromptError, shown
from ..native.bindings import llama_cpp

Tokens = Generator[int, Sequence[int] | None, None]
"""of an answer, as `llama_cpp.Llama.generate` gives them"""
INT32 = range(-(2**31), 2**31)
SEEDS = range(-(2**31), 2**32)
"""of C's uint32_t; -1 and 2**32 - 1 are the same, a random one"""
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_INTEGERS = {"top_k": INT32, "mirostat_mode": INT32, "seed": SEEDS, "idx": INT32}
_FLOATS = (
    "temperature", "temp", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "tfs_z",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_OPTIONAL = ("seed", "idx")


def checked_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a completion, `generate` or `sample`; those of its sampler as Python's own numbers.

    Raises:
        OptionError, OptionTypeError: one of them is none that the sampler can use.
    """
    found = dict(given)
    for name, allowed in _INTEGERS.items():
        if name in found and not (found[name] is None and name in _OPTIONAL):
            found[name] = checked_integer(name, found[name], allowed)
    for name in _FLOATS:
        if name in found:
            found[name] = checked_float(name, found[name])
    if "max_tokens" in found:
        found["max_tokens"] = _checked_max_tokens(found["max_tokens"])
    _check_callbacks(found)
    if not isinstance(grammar := found.get("grammar"), (llama_cpp.LlamaGrammar, type(None))):
        raise OptionTypeError(f"grammar: expected a LlamaGrammar or None, got {shown(grammar)}")
    return found


def check_grammar(grammar: Any, vocab: Any) -> None:
    """Raises OptionError for a grammar that llama.cpp cannot read: the parent samples without one then."""
    if grammar is None:
        return
    text, root = grammar._grammar.encode("utf-8"), grammar._root.encode("utf-8")
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, text, root)
    if not sampler:
        raise OptionError(
            f"grammar: expected one in llama.cpp's notation (GBNF) with a rule {grammar._root}, got {grammar._grammar!r:.80}"
        )
    llama_cpp.llama_sampler_free(sampler)


def _checked_max_tokens(value: Any) -> Any:
    """As a number of Python's own: others overflow once they are added to, such as uint8."""
    if value is None:
        return None
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        number = _as_number(value)
    except (TypeError, ValueError):
        raise OptionTypeError(f"max_tokens: expected a number of tokens or None, got {shown(value)}") from None
    if math.isnan(number):
        raise OptionError(f"max_tokens: expected a number of tokens, got {value}")
    return number


def _check_callbacks(given: Mapping[str, Any]) -> None:
    for name in ("logits_processor", "stopping_criteria"):
        value = given.get(name)
        callbacks = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
        if not all(map(callable, callbacks)):
            raise OptionTypeError(f"{name}: expected a callable, a list of them or None, got {shown(value)}")


def checked_integer(name: str, value: Any, allowed: range) -> int:
    """Raises OptionTypeError for no integer, OptionError for one outside the range."""
    try:
        number = operator.index(value)  # arrays of one integer too, as C takes them
    except TypeError:
        raise OptionTypeError(f"{name}: expected an integer, got {shown(value)}") from None
    if number not in allowed:
        raise OptionError(f"{name}: expected an integer from {allowed[0]} to {allowed[-1]}, got {shown(value)}")
    return number


def checked_float(name: str, value: Any) -> float:
    """Raises OptionTypeError for no number, OptionError for NaN and what is none in 32 bits."""
    try:
        number = _as_number(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise OptionTypeError(f"{name}: expected a number, got {shown(value)}") from None
    if not -_LARGEST_FLOAT <= number <= _LARGEST_FLOAT:
        raise OptionError(f"{name}: expected a finite number of 32 bits, got {shown(value)}")
    return number


def _as_number(value: Any) -> float:
    """Of what C takes for a number: Decimal and arrays of one number too, but no text."""
    if isinstance(value, (str, bytes, bytearray)):
        raise TypeError
    return float(value)


def token_list(tokens: Iterable[Any], n_vocab: int) -> list[int]:
    """Raises PromptError for what is no token of the vocabulary; True is none."""
    try:
        found = list(tokens)
    except TypeError:
        raise PromptError(f"expected token ids, got {shown(tokens)}") from None
    for token in found:
        if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)):
            raise PromptError(f"expected integers as token ids, got {shown(token)}")
        if not 0 <= token < n_vocab:
            raise PromptError(f"expected token ids from 0 to {n_vocab - 1}, got {shown(token)}")
    return found


def check_tokens_of_text(tokens: Sequence[Any], n_vocab: int) -> None:
    """`token_list`, at a glance where all is well: llama_cpp makes a text of all tokens after each one."""
    try:
        if not len(tokens) or (min(tokens) >= 0 and max(tokens) < n_vocab and isinstance(sum(tokens), Integral)):
            return
    except (TypeError, ValueError):  # an array of arrays has no truth value
        pass
    token_list(tokens, n_vocab)


def check_bias(bias: Any, n_vocab: int) -> None:
    """Raises OptionError for a logit_bias of other tokens than the vocabulary's, or of other than numbers."""
    if bias is None:
        return
    if not isinstance(bias, Mapping):
        raise OptionTypeError(f"logit_bias: expected a dict of token ids and numbers, got {shown(bias)}")
    for key, value in bias.items():
        try:
            token, number = int(key), float(value)
        except (TypeError, ValueError, OverflowError):
            raise OptionError(f"logit_bias: expected token ids and numbers, got {shown(key)}: {shown(value)}") from None
        if not 0 <= token < n_vocab:
            raise OptionError(f"logit_bias: expected token ids from 0 to {n_vocab - 1}, got {shown(token)}")
        if math.isnan(number) or number > _LARGEST_FLOAT:  # minus infinity is what forbids a token
            raise OptionError(f"logit_bias: expected numbers of 32 bits, or minus infinity, got {number} for {token}")


def checked_stop(stop: Any) -> list[str]:
    """Stop strings as a list; the parent takes those in a tuple for none."""
    found = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(found, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in found):
        raise OptionTypeError(f"stop: expected a str or a list of them, got {shown(stop)}")
    for one in found:
        check_text("stop", one)
    return list(found)


def is_message(value: Any) -> bool:
    """Whether it is a dict, or an object with a role such as pydantic's, which templates read as well."""
    return isinstance(value, Mapping) or hasattr(value, "role")


def message_list(messages: Any) -> list[Any]:
    """Raises OptionTypeError for other than messages one after another."""
    try:
        found = None if isinstance(messages, (str, bytes, Mapping)) else list(messages)
    except TypeError:
        found = None
    if found is None or not all(map(is_message, found)):
        raise OptionTypeError(f"messages: expected a list of dicts with role and content, got {shown(messages)}")
    return found


def check_prompt(prompt: Any, suffix: Any, n_vocab: int, *, echo: bool) -> None:
    """What a completion begins with.

    Args:
        echo: the prompt is given out again, which the parent can do with a text alone.

    Raises:
        PromptError, OptionTypeError: it is no text that UTF-8 can hold, nor tokens of the vocabulary.
    """
    if not isinstance(suffix, (str, type(None))):
        raise OptionTypeError(f"suffix: expected a str or None, got {shown(suffix)}")
    for name, text in (("prompt", prompt), ("suffix", suffix)):
        if isinstance(text, str):
            check_text(name, text)
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list):
        raise PromptError(f"prompt: expected a str or a list of token ids, got {shown(prompt)}")
    token_list(prompt, n_vocab)
    if echo:
        raise OptionTypeError("echo: expected a text as prompt with it, got token ids; detokenize them first")


def checked_path(value: Any) -> Path:
    """Raises OptionTypeError for no path, OptionError for one that no file can have."""
    if not isinstance(value, (str, PathLike)):
        raise OptionTypeError(f"path: expected a str or a Path, got {shown(value)}")
    if "\0" in str(value):
        raise OptionError(f"path: expected the path of a file, got {shown(value)}")
    return Path(value)


def check_text(name: str, text: str) -> None:
    """Raises PromptError for a text that UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise no_unicode(name, err) from None


def no_unicode(name: str, err: UnicodeEncodeError) -> PromptError:
    """The error of a text that UTF-8 cannot hold."""
    return PromptError(f"{name}: expected a text of Unicode characters, got {err.object[err.start]!r} in it")
