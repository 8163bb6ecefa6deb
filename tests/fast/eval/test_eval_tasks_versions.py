"""The generated prompts are the same under every Python 3.10 or newer that this machine has, whatever the hash seed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asl_gguf
from task_hashes import GENERATED as SHA256
from task_hashes import PUBLISHED as SHA256_PUBLISHED

N_TOKENS = {**dict.fromkeys(SHA256, 500), **dict.fromkeys(SHA256_PUBLISHED, 1500)}
KNOWN = SHA256 | SHA256_PUBLISHED

# Other versions have neither llama.cpp nor NumPy here, and the tasks need none: packages without their __init__.
PROGRAM = """
import hashlib, json, re, sys, types
root, wanted = sys.argv[1], json.loads(sys.argv[2])
for name, folder in (("asl_gguf", root), ("asl_gguf.eval", root + "/eval")):
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package
from asl_gguf.eval.tasks import DEVELOPMENT_SEED, make_task

def count_tokens(text):
    return len(re.findall(r"<\\|\\w+\\|>|\\d|[^\\W\\d]{1,6}|[^\\w\\s]|\\n", text))

found = {}
for name, n_tokens in wanted.items():
    made = make_task(name, count_tokens, n_tokens, 1, DEVELOPMENT_SEED).get_example(0)
    found[name] = hashlib.sha256((made.prompt + made.reference_text).encode()).hexdigest()
print(json.dumps({"version": list(sys.version_info[:2]), "found": found}))
"""


def interpreters() -> list[str]:
    """This one, and those that are installed under other minor versions: on the path, or by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {"this": sys.executable}
    for minor in range(10, 20):
        version = f"3.{minor}"
        installed = sorted(pyenv.glob(f"{version}.*/bin/python"))
        path = str(installed[-1]) if installed else shutil.which(f"python{version}")
        if path and sys.version_info[:2] != (3, minor) and works(path):
            found[version] = path
    return list(found.values())


def works(python: str) -> bool:
    """False of a launcher whose version is not installed."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("hash_seed", ["0", "1"])
@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).resolve().name)
def test_another_python_makes_the_known_examples(python, hash_seed):
    command = [python, "-c", PROGRAM, str(Path(asl_gguf.__file__).parent), json.dumps(N_TOKENS)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["found"] == KNOWN
