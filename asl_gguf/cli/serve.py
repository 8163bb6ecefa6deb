"""`asl-gguf serve`: llama.cpp's server, its prompts pruned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

HELP = "an OpenAI- and Anthropic-compatible endpoint: llama.cpp's server with pruned prompts"


def add_parser(commands: Any) -> None:
    """For the list of commands; `serve` reads its own arguments, most of which are llama-server's."""
    commands.add_parser("serve", help=HELP, add_help=False)


def main(arguments: Sequence[str]) -> int:
    """Serves until it is interrupted."""
    from ..server.options import help_text, split
    from ..server.run import run

    options, rest = split(arguments)
    if {"-h", "--help", "--usage"} & set(rest):
        print(f"usage: asl-gguf serve -m MODEL [--asl-* ...] [llama-server options ...]\n\n{HELP}\n\n{help_text()}\n")
        print("All other options are llama-server's:\n")
        sys.stdout.flush()
    return run(options, rest)
