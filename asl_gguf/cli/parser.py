"""The parser of the command: one that says which option was perhaps meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .llama_names import instead

_MOST_LETTERS = 1000
_LIKENESS = 0.75
"""least likeness of two names for one to be a slip of the other"""
_SHORT_NAME = re.compile(r"-[A-Za-z][A-Za-z-]+")


def shortened(message: str) -> str:
    """A message without the middle of what fills a screen: arguments of thousands of letters are in it as they came."""
    return message if len(message) <= _MOST_LETTERS else f"{message[: _MOST_LETTERS - 100]} ... {message[-80:]}"


class Parser(argparse.ArgumentParser):
    """Names the nearest option of its own command where one is unknown. Subcommands get the same class."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:
            self._check_names(given)
        elif given and not self._knows(given[0]):
            self.error(f"expected a command in front of its options, got {given[0]!r} first")
        parsed, left = super().parse_known_args(given, namespace)
        if left:  # of a subcommand: argparse would leave them to the command's parser, which knows none of its options
            self.refuse(left)
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """One line: the list of options that argparse would put in front fills a screen."""
        message = shortened(message)
        self.exit(
            2, f"{self.prog}: error: {message}{' See' if message.endswith('?') else '; see'} {self.prog} --help\n"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        near = difflib.get_close_matches(str(value), [str(choice) for choice in action.choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentError(
            action, f"expected one of {', '.join(map(str, action.choices))}, got {str(value)!r}{hint}"
        )

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is sys.stdout:  # its help on a full disk is an error, which argparse would drop
            print(message, end="", flush=True)
        else:
            super()._print_message(message, file)

    def _check_names(self, given: Sequence[str]) -> None:
        """Refuses unknown options before argparse takes the values behind them for arguments, or -temp for -t emp."""
        for argument in given:
            if argument == "--":
                return
            # letters behind one dash are a name, and no value of a shorter one: -tb is not -t b, nor -hff -h -f -f
            is_name = _SHORT_NAME.fullmatch(argument) if argument[1:2] != "-" else " " not in argument.partition("=")[0]
            if is_name and not self._knows(argument):
                self.refuse([argument])

    def _knows(self, argument: str) -> bool:
        """Whether it is one of the options, perhaps shortened, or none at all."""
        known, name = self._option_string_actions, argument.partition("=")[0]
        if name.startswith("--"):
            return name in known or (instead(name) is None and any(one.startswith(name) for one in known))
        return not name.startswith("-") or argument in known

    def refuse(self, left: Sequence[str]) -> NoReturn:
        """Ends the program with a message about arguments that nobody knows."""
        unknown = next((argument for argument in left if argument.startswith("-")), left[0]).partition("=")[0]
        if not unknown.startswith("-"):
            self.error(f"expected options of {self.prog}, got {unknown!r}; quote texts with spaces in them")
        near, other = self._nearest(unknown), instead(unknown)
        hint = f"; {other}" if other else f"; did you mean {' or '.join(near)}?" if near else ""
        self.error(f"expected an option of {self.prog}, got the unknown {unknown}{hint}")

    def _nearest(self, unknown: str) -> list[str]:
        known = list(self._option_string_actions)
        folded = {name.lower().replace("_", "-"): name for name in known}
        same = folded.get(unknown.lower().replace("_", "-"))
        if same is not None:
            return [same]
        as_long = [] if unknown.startswith("--") else [name for name in known if name == f"-{unknown}"]
        return as_long or difflib.get_close_matches(unknown, known, 2, _LIKENESS)
