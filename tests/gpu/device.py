"""The device of these tests: a GPU, or where there is none, llama.cpp's RPC backend with a CPU behind it.

Over RPC, layers and their K/V lie in memory that the host does not see, as on a GPU, and their kernels are the CPU's: results
can be compared bit for bit.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import time
from pathlib import Path

from asl_gguf.native.bindings import llama_cpp

_CPU, _GPU = 0, 1  # ggml_backend_dev_type
_ggml = llama_cpp.llama_cpp._lib


def has_gpu() -> bool:
    """Whether ggml found a GPU of this machine."""
    _ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    return bool(_ggml.ggml_backend_dev_by_type(_GPU))


def has_rpc() -> bool:
    return _rpc_library().is_file()


def _rpc_library() -> Path:
    folder = Path(_ggml._name).parent
    return folder / {"win32": "ggml-rpc.dll", "darwin": "libggml-rpc.dylib"}.get(sys.platform, "libggml-rpc.so")


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """A process that computes for others, on this machine's loopback interface; and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return process, f"127.0.0.1:{port}"
        assert process.poll() is None, "the RPC server ended"
        time.sleep(0.1)
    raise TimeoutError("the RPC server does not answer")


def add_server(address: str) -> None:
    """From now on models of this process put their offloaded layers there."""
    rpc = ctypes.CDLL(str(_rpc_library()))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    registry = rpc.ggml_backend_rpc_add_server(address.encode())
    assert registry, address
    _ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    _ggml.ggml_backend_register(registry)


def _serve(port: int) -> None:
    rpc = ctypes.CDLL(str(_rpc_library()))
    rpc.ggml_backend_rpc_start_server.restype = None
    rpc.ggml_backend_rpc_start_server.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
    ]  # fmt: skip
    _ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(_ggml.ggml_backend_dev_by_type(_CPU))
    rpc.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, 1, 1, devices)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
