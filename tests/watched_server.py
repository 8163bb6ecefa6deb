"""`asl_gguf` as a program that says how much memory it holds, to whoever sends "look" or "trim" to WATCH_PORT of this machine.

The server's own thread is in native code, so a thread of Python's can answer beside it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import threading
import tracemalloc
from pathlib import Path

from asl_gguf.cli import main

WATCH_PORT = "ASL_TEST_WATCH_PORT"


class mallinfo2(ctypes.Structure):
    """glibc's."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def held(trim: bool) -> dict[str, int]:
    """Bytes: handed out by malloc (all arenas, C++ and Python), traced by Python alone, resident.

    Args:
        trim: malloc gives pages without a block back first.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = mallinfo2
    if trim:
        libc.malloc_trim(0)
    found = libc.mallinfo2()
    n_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "in_use": found.uordblks + found.hblkhd,
        "python": tracemalloc.get_traced_memory()[0],
        "resident": n_pages * os.sysconf("SC_PAGE_SIZE"),
    }


def _answer(listener: socket.socket) -> None:
    while True:
        connection = listener.accept()[0]
        with connection:
            connection.sendall(json.dumps(held(connection.recv(4) == b"trim")).encode())


if __name__ == "__main__":
    tracemalloc.start()
    threading.Thread(
        target=_answer, args=(socket.create_server(("127.0.0.1", int(os.environ[WATCH_PORT]))),), daemon=True
    ).start()
    sys.exit(main())
