"""`asl-gguf serve`: llama.cpp's server, its prompts pruned."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
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
    elif options.budget is not None and options.answers:
        print(f"The page, once the model is loaded: {page_address(rest, os.environ)}", file=sys.stderr, flush=True)
    return run(options, rest)


def page_address(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """Where /asl will be, by the arguments and variables of llama-server."""
    found = {"--host": env.get("LLAMA_ARG_HOST", "127.0.0.1"), "--port": env.get("LLAMA_ARG_PORT", "8080")}
    found["--api-prefix"] = env.get("LLAMA_ARG_API_PREFIX", "")
    for name, value in itertools.pairwise(arguments):
        if name in found:
            found[name] = value
    host = "127.0.0.1" if found["--host"] in ("0.0.0.0", "::") else found["--host"]
    return f"http://{host}:{found['--port']}{found['--api-prefix']}/asl"
