"""The devices that ggml found on this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from .bindings import llama_cpp

_GPU, _INTEGRATED_GPU = 1, 2  # ggml_backend_dev_type


def _ggml() -> Any:
    library = llama_cpp.llama_cpp._lib  # libllama, through which its libggml is found
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    library.ggml_backend_dev_memory.restype = None
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    for function in (library.ggml_backend_dev_name, library.ggml_backend_dev_description):
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return library


def count() -> int:
    """How many there are, CPUs included."""
    return int(_ggml().ggml_backend_dev_count())


def names() -> Iterator[tuple[str, str]]:
    """(name, description) of each."""
    ggml = _ggml()
    for index in range(count()):
        device = ggml.ggml_backend_dev_get(index)
        yield ggml.ggml_backend_dev_name(device).decode(), ggml.ggml_backend_dev_description(device).decode()


def offloads() -> bool:
    """Whether layers have anywhere to go but the CPU. (llama_supports_gpu_offload says yes where RPC is built in.)"""
    return any(_ggml().ggml_backend_dev_by_type(kind) for kind in (_GPU, _INTEGRATED_GPU))


def gpu_bytes_used() -> int | None:
    """Bytes in use on the first GPU, by whatever program; None without a GPU."""
    ggml = _ggml()
    device = ggml.ggml_backend_dev_by_type(_GPU)
    if not device:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value
