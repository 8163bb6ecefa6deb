"""Arguments of llama-server, checked before anything is said or loaded: it would name no option that was perhaps meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import OptionError, shown
from . import bindings
from .options import FLAGS

_LIKENESS = 0.7
"""least likeness of two names for one to be a slip of the other"""
_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)
"""how texts begin that llama.cpp reads as whole numbers"""
_LARGEST = 2**31 - 1


class ServerOption(NamedTuple):
    """An option of llama-server."""

    n_values: int
    integer: bool
    """whether its value is a whole number"""


def server_options() -> dict[str, ServerOption]:
    """Those that this build of llama-server has, by each of their names.

    Raises:
        LibraryError: the server was not built.
    """
    parts: list[bytes] = []
    sink = bindings.Sink(lambda _data, text, n: parts.append(text[:n]))
    bindings.load().asl_serve_options(sink, None)
    rows = (line.split() for line in b"".join(parts).decode().splitlines())
    return {name: ServerOption(int(n_values), kind == "int") for name, n_values, kind in rows}


def check(arguments: Sequence[str], options: Mapping[str, ServerOption]) -> None:
    """Raises OptionError for an unknown option, one without its value, or a value that is no number where one is needed."""
    left = iter(arguments)
    for argument in left:
        name = argument.replace("_", "-") if argument.startswith("--") else argument  # as llama.cpp does
        option = options.get(name)
        if option is None:
            raise OptionError(_unknown(name, options))
        for _ in range(option.n_values):
            value = next(left, None)
            if value is None:
                raise OptionError(f"{argument}: expected a value, got none")
            if option.integer:
                _check_integer(argument, value)


def _check_integer(argument: str, value: str) -> None:
    number = _INTEGER.match(value)
    if number is None:
        raise OptionError(f"{argument}: expected a whole number, got {shown(value)}")
    if len(number[1]) > 1000 or not -_LARGEST - 1 <= int(number[1]) <= _LARGEST:
        raise OptionError(f"{argument}: expected a whole number of at most {_LARGEST}, got {shown(value)}")


def _unknown(name: str, options: Mapping[str, ServerOption]) -> str:
    if not name.startswith("-"):
        return f"expected an option of asl-gguf serve in front of {shown(name)}, got none; -m names a model"
    said = f"expected an option of asl-gguf serve, got the unknown {shown(name).strip(chr(39))}"
    plain, equals, value = name.partition("=")
    if equals and plain in options:
        return f"{said}; write {plain} {value}" if options[plain].n_values else f"{said}; {plain} takes no value"
    ours = [flag.option for flag in FLAGS]
    known = [*options, *ours]
    meant = [one for one in ours if one.removeprefix("--asl-") == name.removeprefix("--")]
    near = meant or difflib.get_close_matches(name, known, 2, _LIKENESS)
    return f"{said}; did you mean {' or '.join(near)}?" if near else f"{said}; see asl-gguf serve --help"
