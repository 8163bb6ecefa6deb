"""What the parent gets wrong about the arguments of a completion, made right before and after it runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import OptionError, OptionTypeError, shown
from ..native.bindings import llama_cpp
from .values import check_bias, check_prompt, checked_sampling, checked_stop


def as_called(arguments: Mapping[str, Any], n_vocab: int) -> dict[str, Any]:
    """The arguments as they are now: a stream reads them when its first chunk is asked for.

    Raises:
        PromptError: the prompt has other tokens than the vocabulary's, or is no Unicode.
        OptionError: a value of the sampler is none that it can use.
    """
    found = {name: copy.copy(value) if isinstance(value, (list, dict)) else value for name, value in arguments.items()}
    echo = bool(found.get("echo")) and not found.get("stream")
    check_prompt(found["prompt"], found.get("suffix"), n_vocab, echo=echo)
    check_bias(found.get("logit_bias"), n_vocab)
    found["stop"] = checked_stop(found.get("stop"))
    return _with_bias(checked_sampling(found))


def _with_bias(arguments: dict[str, Any]) -> dict[str, Any]:
    """logit_bias as the last of the logits processors, where there are others: the parent loses both then."""
    bias, processors = arguments.get("logit_bias"), arguments.get("logits_processor")
    if bias is None or processors is None:
        return arguments
    biases = {int(token): float(value) for token, value in bias.items()}

    def add(_ids: Any, scores: Any) -> Any:
        result = np.copy(scores)
        for token, value in biases.items():
            result[token] += value
        return result

    both = llama_cpp.LogitsProcessorList([*processors, add])
    return arguments | {"logits_processor": both, "logit_bias": None}


def check_response_format(response_format: Any) -> None:
    """Raises OptionTypeError for no dict with a type, OptionError for a schema that no grammar can be made of: the parent takes
    any JSON then.
    """
    if response_format is None:
        return
    if not isinstance(response_format, Mapping) or "type" not in response_format:
        raise OptionTypeError(
            f'response_format: expected a dict such as {{"type": "json_object"}}, got {shown(response_format)}'
        )
    if response_format["type"] != "json_object":
        return
    if (schema := response_format.get("schema")) is None:
        return
    try:
        llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except Exception as err:  # whatever the parent's converter stumbles over
        raise OptionError(
            f"response_format: expected a JSON schema that llama_cpp can make a grammar of, got {schema!r:.80}: "
            f"{type(err).__name__}: {err}"
        ) from err


def whole_characters(
    chunks: Iterator[dict[str, Any]], made: Callable[[], object], whole: Callable[[], str]
) -> Iterator[dict[str, Any]]:
    """A stream whose text is that of the plain answer.

    The parent gives out what it held back for a stop string token by token, and drops characters of several tokens then.
    From the first of these on, the text comes in one chunk, before the last one.

    Args:
        made: another value after every token.
        whole: all text so far, up to a stop string.
    """
    given, before, held = "", None, False
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["finish_reason"] is None:
            now = made()
            held = held or not choice["text"] or (now == before and not whole().startswith(given + choice["text"]))
            before = now
            choice["text"] = "" if held else choice["text"]
            given += choice["text"]
        elif held:
            # in a chunk of its own: the parent's converter to chat chunks drops the text of the last one
            rest = whole().removeprefix(given)
            yield {**chunk, "choices": [{**choice, "text": rest, "finish_reason": None}]}
            choice["text"] = ""
        yield chunk


def stop_at(text: bytes, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins; the text's end if there is none."""
    begins = [text.index(one) for one in (each.encode("utf-8") for each in stop) if one in text]
    return min(begins, default=len(text))


def up_to_stop(text: bytes, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: stop_at(text, stop)].decode("utf-8", "ignore")


def ended_at_first_stop(
    results: Iterator[dict[str, Any]], stop: list[str], echoed: str, suffix: str, answer: Callable[[int], bytes]
) -> Iterator[dict[str, Any]]:
    """Plain answers, each cut by `end_at_first_stop`.

    Args:
        echoed: what the parent has put before the text.
        suffix: what it has put behind the text.
        answer: the bytes of the last so many tokens.
    """
    for result in results:
        choice, n_tokens = result["choices"][0], result["usage"]["completion_tokens"]
        if len(stop) > 1 and choice["finish_reason"] == "stop" and n_tokens:
            end_at_first_stop(choice, answer(n_tokens), stop, suffix)
        if choice["finish_reason"] == "length" and choice["text"] == echoed + suffix and n_tokens:
            # the parent has no text where the tokens ended within a character
            choice["text"] = echoed + up_to_stop(answer(n_tokens), stop) + suffix
        yield result


def end_at_first_stop(choice: dict[str, Any], whole: bytes, stop: list[str], suffix: str) -> None:
    """Cuts the text of a choice where the first of the stop strings begins, as streams do.

    The parent cuts at the first one of the list that occurs.

    Args:
        whole: all that was generated.
        suffix: what the parent has put behind the text.
    """
    occurring = [one for one in stop if one.encode("utf-8") in whole]
    cut = up_to_stop(whole, occurring[:1]) + suffix
    if occurring and choice["text"].endswith(cut):
        choice["text"] = choice["text"][: len(choice["text"]) - len(cut)] + up_to_stop(whole, occurring) + suffix
