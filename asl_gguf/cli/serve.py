"""`asl-gguf serve`: llama.cpp's server, its prompts pruned."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..server.options import Options

_ENDS = {"--version", "-cl", "--cache-list", "--completion-bash", "--list-devices"}
"""options of llama-server that say something and end it"""
_SSL = {"--ssl-key-file": "LLAMA_ARG_SSL_KEY_FILE", "--ssl-cert-file": "LLAMA_ARG_SSL_CERT_FILE"}
HELP = "an OpenAI- and Anthropic-compatible endpoint: llama.cpp's server with pruned prompts"


def add_parser(commands: Any) -> None:
    """For the list of commands; `serve` reads its own arguments, most of which are llama-server's."""
    commands.add_parser("serve", help=HELP, add_help=False)


def main(arguments: Sequence[str]) -> int:
    """Serves until it is interrupted."""
    from ..server.arguments import check, server_options
    from ..server.options import help_text, split
    from ..server.run import run, with_model

    options, rest = split(from_files(arguments))
    if {"-h", "--help", "--usage"} & set(rest):
        print(f"usage: asl-gguf serve -m MODEL [--asl-* ...] [llama-server options ...]\n\n{HELP}\n\n{help_text()}\n")
        print("All other options are llama-server's:\n")
        sys.stdout.flush()
    else:
        check(rest, server_options())
        rest = with_model(rest)
        _show_page(options, rest)
    return run(options, rest)


def _show_page(options: Options, arguments: Sequence[str]) -> None:
    """Says where the page will be, and opens it if that was asked for."""
    if options.budget is None or not options.answers or _ENDS & set(arguments):
        return
    address = page_address(arguments, os.environ)
    if address is not None:
        print(f"The page, once the model is loaded: {address}", file=sys.stderr, flush=True)
        if options.open:
            threading.Thread(target=open_when_ready, args=(address,), daemon=True).start()


def from_files(arguments: Sequence[str]) -> list[str]:
    """@FILE stands for the arguments in a file: as in a shell, over as many lines as one likes, # begins a comment.

    Raises:
        OptionError: the file cannot be read, or has a quotation mark without its other one.
    """
    result: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            result.append(argument)
            continue
        try:
            result += shlex.split(Path(argument[1:]).read_text(encoding="utf-8"), comments=True)
        except (OSError, ValueError) as err:
            raise OptionError(
                f"{argument}: expected a file of arguments, got {err}; a value that begins with @ may stand in such a file"
            ) from err
    return result


def open_when_ready(address: str, pause: float = 0.3) -> None:
    """Shows the page in a browser as soon as the model is loaded; nothing where no desktop is."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        return  # a browser of the terminal would take it over
    health = address.removesuffix("/asl") + "/health"
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5) as answer:
            if answer.status == 200:
                break
        time.sleep(pause)
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)


def page_address(arguments: Sequence[str], env: Mapping[str, str]) -> str | None:
    """Where /asl will be, by the arguments and variables of llama-server; None: at a socket of Unix."""
    found = {"--host": env.get("LLAMA_ARG_HOST", "127.0.0.1"), "--port": env.get("LLAMA_ARG_PORT", "8080")}
    found["--api-prefix"] = env.get("LLAMA_ARG_API_PREFIX", "")
    found |= {name: env.get(variable, "") for name, variable in _SSL.items()}
    for name, value in itertools.pairwise(arguments):
        if (name := name.replace("_", "-")) in found:
            found[name] = value
    if found["--host"].endswith(".sock"):
        return None
    host = "127.0.0.1" if found["--host"] in ("0.0.0.0", "::") else found["--host"]
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if all(found[name] for name in _SSL) else "http"
    return f"{scheme}://{host}:{found['--port']}{found['--api-prefix']}/asl"
