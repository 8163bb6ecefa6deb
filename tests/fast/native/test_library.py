"""Which library is loaded, and what is said where there is none, another one, or a broken one. Each in a new interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asl_gguf.native.loading import library_file
from harness import llama_cpp
from patience import PATIENCE

LIBRARY = Path(llama_cpp.llama_cpp._base_path)


def run_python(code: str, **env: str) -> str:
    """Runs code in a new interpreter with this one's search path; returns the last line that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.fixture
def other_library(tmp_path) -> Path:
    """The same library in another folder."""
    for file in LIBRARY.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


USE = "import asl_gguf.drop_in.llama; print('fine')"


@pytest.mark.long
def test_a_library_path_is_followed(other_library):
    code = "import asl_gguf.native.bindings as n; print(n.llama_cpp.llama_cpp._lib._name)"
    found = run_python(code, LLAMA_CPP_LIB_PATH=str(other_library))
    assert found == str(library_file(other_library))
    assert run_python(code) == str(library_file(LIBRARY))


def test_a_library_path_without_a_library(tmp_path):
    found = run_python(USE, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert re.search(rf"LibraryError: expected \S*llama\S* in {tmp_path} .*found none. Unset LLAMA_CPP_LIB_PATH", found)


def test_no_library():
    code = "import os; from asl_gguf.native import loading; os.environ.pop('LLAMA_CPP_LIB_PATH', 0); loading.load(['/nowhere'])"
    found = run_python(code)
    assert re.search(
        r"LibraryError: expected .* in /nowhere/lib .*found none. Install the package with pip.* or run `make build`",
        found,
    )


def test_options_and_models_work_without_a_library(tmp_path):
    code = "import asl_gguf, asl_gguf.cli, asl_gguf.models; print(len(asl_gguf.models.named_models()) > 0)"
    assert run_python(code, LLAMA_CPP_LIB_PATH=str(tmp_path)) == "True"


@pytest.mark.long
def test_llama_cpp_imported_too_early(other_library):
    code = f"import llama_cpp, os; del os.environ['LLAMA_CPP_LIB_PATH']; {USE}"
    found = run_python(code, LLAMA_CPP_LIB_PATH=str(other_library))
    assert re.search(
        rf"LibraryError: llama_cpp was imported before asl_gguf .*{other_library}.*Import asl_gguf first", found
    )
    # on top of the right library, the order does not matter
    assert run_python(f"import llama_cpp; {USE}", LLAMA_CPP_LIB_PATH=str(LIBRARY)) == "fine"
    assert run_python(f"import asl_gguf, llama_cpp; {USE}") == "fine"


@pytest.mark.long
def test_another_version(other_library):
    version = other_library / "LLAMA_CPP_VERSION"
    version.unlink()
    found = run_python(USE, LLAMA_CPP_LIB_PATH=str(other_library))
    assert re.search(rf"LibraryError: expected a file LLAMA_CPP_VERSION .*{other_library}; reinstall", found)
    version.write_text("llama-cpp-python 0.1.2\nsha256 0\n")
    found = run_python(USE, LLAMA_CPP_LIB_PATH=str(other_library))
    assert re.search(r"LibraryError: expected llama-cpp-python 0.1.2 .*got \d.*Install llama-cpp-python==0.1.2", found)
    version.write_text("?")
    assert "LibraryError" in run_python(USE, LLAMA_CPP_LIB_PATH=str(other_library))


def test_a_library_that_does_not_load(other_library):
    file = library_file(other_library)
    file.unlink()
    file.write_bytes(b"not a library")
    found = run_python(USE, LLAMA_CPP_LIB_PATH=str(other_library))
    assert re.search(rf"LibraryError: {file} cannot be loaded: .*Reinstall asl_gguf", found)
