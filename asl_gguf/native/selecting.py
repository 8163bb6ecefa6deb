"""Which library `import llama_cpp` will find. Light: it is imported with the package, before the command can handle Ctrl-C."""

from __future__ import annotations

import os
import sys

ENV = "LLAMA_CPP_LIB_PATH"
ENV_MTMD = "MTMD_CPP_LIB"
"""the same for llama_cpp.mtmd_cpp"""


def library_in(folder: str) -> str:
    """Path of libllama in a folder, under the platform's name for it."""
    names = {"win32": ("llama.dll",), "darwin": ("libllama.dylib", "libllama.so")}
    candidates = [os.path.join(folder, name) for name in names.get(sys.platform, ("libllama.so",))]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def point_to(folder: str) -> None:
    """Has a later `import llama_cpp` load the library in this folder."""
    os.environ[ENV] = folder
    os.environ.setdefault(ENV_MTMD, folder)


def select(package_paths: list[str]) -> None:
    """Points a later `import llama_cpp` at our library. Errors are left to `loading.load`."""
    if "llama_cpp.llama_cpp" in sys.modules or ENV in os.environ:
        return
    for path in package_paths:
        folder = os.path.join(path, "lib")
        if os.path.exists(library_in(folder)):
            point_to(os.path.realpath(folder))
            return
