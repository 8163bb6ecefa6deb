"""The entry of the `asl-gguf` command, and of `python -m asl_gguf`. Light: Ctrl-C is handled before the rest is imported."""

import os
import signal
import sys
from types import FrameType


def _cancelled(number: int, frame: "FrameType | None") -> None:
    """Ends the process now: an exception could come anywhere in an import, and some of them are dropped there."""
    try:
        os.write(2, b"asl-gguf: cancelled\n")
    finally:
        os._exit(130)


def main() -> int:
    """Runs the command of sys.argv. Returns its exit code."""
    # SIGINT of a job in the background is ignored
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _cancelled)
    from .cli import main as run

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # between two commands' own handling
        _cancelled(signal.SIGINT, None)
        raise


if __name__ == "__main__":
    sys.exit(main())
