"""The `asl-gguf` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import AslError, OptionError, PromptError
from . import bench, calibrate, chat, compare, demo, doctor, evaluate, inspect, models, run
from .options import check_counts


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asl-gguf", description="Long prompts on quantised GGUF models, pruned while they are prefilled."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (demo, run, chat, models, bench, evaluate, doctor, inspect, compare, calibrate):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 1 (it failed), 2 (wrong use) or 130 (Ctrl-C)."""
    args = make_parser().parse_args(argv)
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    try:
        check_counts(args)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (OptionError, PromptError) as err:
        print(f"asl-gguf: {err}", file=sys.stderr)
        return 2
    except AslError as err:
        print(f"asl-gguf: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("asl-gguf: cancelled", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # whoever read the output, such as `head`, has enough: nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
