"""`asl-gguf doctor`: what is installed, what it found, and what to do about problems."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import AslError, UnsupportedModelError
from ..models import named

_N_CELLS = 256
"""of a context to try a model with"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="check the installation", description="Versions, library in use, backends, problems."
    )
    parser.add_argument("-m", "--model", help="also say whether prompts of this model are pruned, or why not")
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace) -> int:
    _row("asl_gguf", __version__)
    _row("python", f"{platform.python_version()} ({sys.executable})")
    _row("platform", f"{platform.system()} {platform.machine()}")
    for package in ("llama-cpp-python", "numpy", "gguf"):
        _row(package, _version(package))
    problems = list(_check_library()) + list(_check_models())
    if args.model:
        _row("model", _pruning_of(args.model))
    print()
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        print("no problems found")
    return 1 if problems else 0


def _pruning_of(name_or_path: str) -> str:
    """What happens to prompts of a model."""
    from ..native.model import ContextOptions, Model
    from ..native.session import unsupported_reason

    model = Model(str(named.resolve(name_or_path)), ContextOptions())
    try:
        if reason := unsupported_reason(model.handle):
            return f"answered from the full cache: {reason}"
        with model.context(_N_CELLS) as ctx, model.session(ctx, _N_CELLS, _N_CELLS, "off") as session:
            n_asked = sum(not itself for itself in session.sliding)
            rows_only = "" if session.drops_tokens else "; K/V rows alone, every layer runs over all tokens"
            indexer = "; the policy indexer ranks by the model's own" if session.has_indexer else ""
            return f"pruned: K/V of {n_asked} of {len(session.sliding)} layers are chosen{rows_only}{indexer}"
    except UnsupportedModelError as err:
        return f"answered from the full cache: {err}"
    finally:
        model.close()


def _row(name: str, value: object) -> None:
    print(f"{name:18} {value}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _check_library() -> Iterator[str]:
    try:
        from ..native import bindings, devices, loading
    except AslError as err:
        _row("library", "not usable")
        yield str(err)
        return
    llama_cpp = bindings.llama_cpp
    library = Path(llama_cpp.llama_cpp._lib._name)
    _row("library", library)
    _row("asl ABI", bindings.lib.abi_version())
    llama_cpp.llama_backend_init()
    for name, description in devices.names():
        _row("backend", f"{name}: {description}")
    if variants := loading.cpu_variants(library.parent):
        _row("cpu variant", f"{loading.cpu_variant(library.parent) or 'unknown'} (of {', '.join(variants)})")
    _row("cpu features", llama_cpp.llama_print_system_info().decode())
    _row("asl_dequant=auto", bindings.lib.kernel_rule().decode())
    _row("packed weights", f"{bindings.lib.packed_kernel_name().decode()} kernel")
    attention = bindings.lib.attention_kernel_name().decode()
    _row("attention", "llama.cpp's" if attention == "scalar" else f"{attention} kernel, but with asl_dequant=False")
    _row("OpenMP", loading.waiting)


def _check_models() -> Iterator[str]:
    try:
        known = named.named_models().values()
    except AslError as err:
        yield str(err)
        return
    _row("model cache", named.cache_dir())
    here = [model.name for model in known if named.is_pulled(model)]
    _row("models", ", ".join(here) if here else f"none (asl-gguf models pull {next(iter(known)).name})")
