"""The worker as a process: what bench/peers' commands share. Runs with asl_gguf's own Python."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from asl_gguf.errors import AslError, OptionError
from asl_gguf.models.named import resolve
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.model import ContextOptions, Model

WORKER = Path(__file__).with_name("worker.py")
_QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Peer:
    """transformers and kvpress in their own Python, with the model of one GGUF file."""

    def __init__(self, python: str, model: Model) -> None:
        """Raises OptionError if this Python cannot be started, or lacks what requirements.txt names."""
        command = [python, "-W", "ignore", str(WORKER)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | _QUIET
            )
        except OSError as err:
            raise OptionError(f"--python: expected the Python of an environment, got {python}: {err}") from None
        n_threads = model.options.n_threads
        loaded = self.ask("load", path=model.path, n_threads=n_threads, attention="sdpa")
        self.versions: dict[str, str] = loaded["versions"]

    def ask(self, call: str, **arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            OptionError: the worker has ended; it printed why.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"call": call} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise OptionError(
                f"expected an answer to {call}, the worker has ended with {self._process.wait()}; its reason stands "
                "above. --python wants an environment with bench/peers/requirements.txt"
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the worker."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all commands have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--python", required=True, help="Python with bench/peers/requirements.txt")
    made.add_argument("-m", "--model", default="smollm2-135m-instruct")
    made.add_argument("-t", "--threads", type=int, default=1, help="of both (default %(default)s)")
    return made


def open_both(args: argparse.Namespace) -> tuple[Model, Peer]:
    """The model in llama.cpp, and in transformers."""
    model = open_ours(args)
    return model, Peer(args.python, model)


def open_ours(args: argparse.Namespace) -> Model:
    """The model in llama.cpp."""
    return Model(str(resolve(args.model)), ContextOptions(args.threads))


def end_tokens(model: Model) -> list[int]:
    """Tokens that end a completion."""
    vocab = llama_cpp.llama_model_get_vocab(model.handle)
    return [token for token in range(model.n_vocab) if llama_cpp.llama_vocab_is_eog(vocab, token)]


def run(command: Any) -> int:
    """Exit status of a command; errors of use are printed as one line."""
    try:
        command()
    except AslError as err:
        raise SystemExit(f"error: {err}") from None
    return 0
