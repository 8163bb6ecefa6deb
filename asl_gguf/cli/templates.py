"""--chat-template and its like: another chat template than the one in the model's file."""

from __future__ import annotations

import argparse
import ctypes
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError, PromptError, shown
from .documents import read_plain
from .source import require_utf8
from .streams import warn

_OPTIONS = ("chat_template", "chat_template_file", "chat_template_kwargs")
_MOST_BUILTIN = 1024
_GIVEN = frozenset(
    "self messages functions function_call tools tool_choice bos_token eos_token add_generation_prompt raise_exception "
    "strftime_now".split()
)
"""variables that a template has in any case"""


def add_template_options(parser: argparse.ArgumentParser) -> None:
    """--chat-template, --chat-template-file and --chat-template-kwargs."""
    group = parser.add_argument_group("more options of llama.cpp's programs: the chat template")
    add = group.add_argument
    add("--chat-template", metavar="JINJA", help="in place of the model's; or a name that llama.cpp knows, as chatml")
    add("--chat-template-file", metavar="FILE", help="the same in a file")
    add("--chat-template-kwargs", metavar="JSON", help='variables for it: {"enable_thinking": false}')


@dataclass(frozen=True)
class Template:
    """What was asked for.

    Args:
        option: it came from.
        text: a Jinja template or a built-in one's name; None: the model's.
        variables: for it.
    """

    option: str = ""
    text: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def install(self, llm: Any) -> None:
        """Chats of this `Llama` are written by it.

        Raises:
            OptionError: it is no template, or there is none to give variables to.
        """
        if not self.option:
            return
        from ..native.bindings import llama_cpp

        write = self._formatter(llm)

        def formatted(**arguments: Any) -> Any:
            try:
                return write(**arguments, **self.variables)
            except Exception as err:  # whatever a template does
                raise PromptError(
                    f"{self.option}: expected a template that writes this conversation, got {type(err).__name__}: {err}"
                ) from None

        llm.chat_handler = llama_cpp.llama_chat_format.chat_formatter_to_chat_completion_handler(formatted)

    def _formatter(self, llm: Any) -> Callable[..., Any]:
        from ..native.bindings import llama_cpp

        text = self.text
        if text is None:
            text = llm.metadata.get("tokenizer.chat_template")
            if text is None:
                raise OptionError(
                    f"{self.option}: expected a model with a chat template, got one without; add --chat-template"
                )
        elif (name := text.strip()) in (names := _builtin_names()):
            if self.variables:
                warn(f"--chat-template-kwargs: without effect, {name} is code of llama.cpp, which reads no variables")
            return _builtin(name, llama_cpp)
        elif "{" not in text:
            near = difflib.get_close_matches(name, names, 1)
            raise OptionError(
                f"{self.option}: expected a Jinja template or one of {', '.join(names)}, got {shown(name)}"
                f"{f'; did you mean {near[0]}?' if near else ''}"
            )
        bos, eos = (llm._model.token_get_text(one) if one >= 0 else "" for one in (llm.token_bos(), llm.token_eos()))
        try:
            formatter: Callable[..., Any] = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
                template=text, eos_token=eos, bos_token=bos, stop_token_ids=[llm.token_eos()]
            )
        except Exception as err:  # jinja2's
            raise OptionError(f"{self.option}: expected a Jinja template, got {type(err).__name__}: {err}") from None
        return formatter


def template_of(args: argparse.Namespace) -> Template:
    """The template that the options describe.

    Raises:
        OptionError: two templates are given, one beside --raw, or variables that are no JSON object.
        PromptError: a file cannot be read, or a text is no UTF-8.
    """
    given = {f"--{name.replace('_', '-')}": getattr(args, name, None) for name in _OPTIONS}
    flags = [flag for flag, value in given.items() if value is not None]
    if not flags:
        return Template()
    if getattr(args, "raw", False):
        raise OptionError(f"{flags[0]}: expected the chat template, got --raw, which writes none")
    text, file, variables = given.values()
    if text is not None and file is not None:
        raise OptionError(f"{flags[0]}: expected alone, got it with {flags[1]}; one template writes a chat")
    for flag, value in given.items():
        require_utf8(flag, value or "")
    return Template(flags[0], text if file is None else read_plain(file), _variables(variables))


def _variables(text: str | None) -> dict[str, Any]:
    try:
        value = {} if text is None else json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("no object")
        if taken := sorted(_GIVEN & value.keys()):
            raise ValueError(f"every template has its own {', '.join(taken)}")
    except (ValueError, RecursionError) as err:
        raise OptionError(
            f'--chat-template-kwargs: expected a JSON object such as {{"enable_thinking": false}}, got {shown(text)}: {err}'
        ) from None
    return value


def _builtin_names() -> list[str]:
    from ..native.bindings import llama_cpp

    names = (ctypes.c_char_p * _MOST_BUILTIN)()
    n_names = llama_cpp.llama_chat_builtin_templates(names, _MOST_BUILTIN)
    return sorted(name.decode() for name in names[: min(n_names, _MOST_BUILTIN)] if name)


def _builtin(name: str, llama_cpp: Any) -> Callable[..., Any]:
    """Writes a chat as llama.cpp's own code does, without Jinja."""

    def write(*, messages: list[Any], **_others: Any) -> Any:
        texts = [(str(one["role"]).encode(), str(one["content"] or "").encode()) for one in messages]
        chat = (llama_cpp.llama_chat_message * len(texts))(*(llama_cpp.llama_chat_message(*one) for one in texts))
        n_bytes = 0
        while True:
            buffer = ctypes.create_string_buffer(n_bytes)
            written = llama_cpp.llama_chat_apply_template(name.encode(), chat, len(texts), True, buffer, n_bytes)
            if written < 0:
                raise ValueError(f"llama.cpp's {name} does not write it")
            if written <= n_bytes:
                break
            n_bytes = written
        prompt = buffer.raw[:written].decode("utf-8")
        return llama_cpp.llama_chat_format.ChatFormatterResponse(prompt=prompt)

    return write
