"""Starts llama.cpp's server in this process, with our engine in it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Sequence

from ..models.named import resolve
from . import bindings, child
from .engine import Engine
from .options import Options

_MODEL = ("-m", "--model")
_FETCHED = ("-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "-dr", "--docker-repo")


def run(options: Options, arguments: Sequence[str]) -> int:
    """Serves until SIGINT or SIGTERM. Returns llama-server's exit code.

    Args:
        arguments: of llama-server, without the program's name.

    Raises:
        LibraryError: the server was not built.
    """
    library = bindings.load()
    engine = Engine(options)
    if options.budget is not None:
        library.asl_serve_set_engine(ctypes.byref(engine.struct))
    # the server has handlers of its own; until it sets them, Ctrl-C ends the process. A handler of Python's would wait for
    # Python code to run, and sessions would put theirs in place of the server's.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # without a model it is a router, which starts a server for each model that is asked for
    os.environ.update({**options.to_env(), child.PYTHON: sys.executable, "LLAMA_APP_CMD": child.__file__})
    # what is there now stays: a full collection within a slice need not look at it, which would take 20 ms
    gc.collect()
    gc.freeze()
    texts = [b"asl-gguf serve", *(argument.encode("utf-8", "surrogateescape") for argument in arguments)]
    code = int(library.asl_serve_run(len(texts), (ctypes.c_char_p * (len(texts) + 1))(*texts, None)))
    library.asl_serve_set_engine(None)
    return code


def with_model(arguments: Sequence[str]) -> list[str]:
    """The arguments, the name of a pulled model replaced by its file.

    Raises:
        ModelError: there is no such file or model, it is no GGUF, or the model is not pulled.
    """
    result = list(arguments)
    if set(_FETCHED) & {argument.replace("_", "-") for argument in result}:  # -m says where the file will be
        return result
    places = [i for i, argument in enumerate(result[:-1]) if argument in _MODEL]
    for i in places[-1:]:  # the last one counts
        result[i + 1] = str(resolve(result[i + 1]))
    return result
