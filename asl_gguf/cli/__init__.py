"""The `asl-gguf` command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import AslError, OptionError, PromptError
from . import bench, calibrate, chat, compare, demo, doctor, evaluate, inspect, models, run, serve
from .options import check_numbers
from .parser import Parser, shortened
from .streams import as_typed, drop_output, open_streams


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="asl-gguf", description="Long prompts on quantised GGUF models, pruned while they are prefilled."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (demo, run, chat, serve, models, bench, evaluate, doctor, inspect, compare, calibrate):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 1 (it failed), 2 (wrong use) or 130 (Ctrl-C)."""
    try:
        return _run(argv)
    except (OptionError, PromptError) as err:
        return _failed(err, 2)
    except AslError as err:
        return _failed(err, 1)
    except KeyboardInterrupt:
        return _failed("cancelled", 130)
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough: nothing more may be written
        drop_output()
        return 1
    except OSError as err:  # a full disk, a folder that cannot be written: the file's name is in it where there is one
        drop_output()
        return _failed(f"expected a file that can be read or written, got {err}", 1)
    except MemoryError as err:
        return _failed(f"expected more memory than this machine has left: {err or 'none is left'}", 1)


def _run(argv: Sequence[str] | None) -> int:
    open_streams()
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        make_parser().print_help(sys.stderr)
        return 2
    if argv[:1] == ["serve"]:  # most of its arguments are llama-server's
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        return serve.main(argv[1:])
    args = make_parser().parse_args(argv)
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    check_numbers(args)
    code = int(args.run(args))
    sys.stdout.flush()
    return code


def _failed(why: object, code: int) -> int:
    with contextlib.suppress(OSError):  # standard error may be as full as standard output
        print(f"asl-gguf: {as_typed(shortened(str(why)))}", file=sys.stderr, flush=True)
    return code
