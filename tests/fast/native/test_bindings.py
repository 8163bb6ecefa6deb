"""asl_gguf.native.bindings says what the headers of native/include say."""

from __future__ import annotations

import ctypes
import re
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

import pytest

from asl_gguf.native import bindings

HEADERS = [Path(__file__).parents[3] / "native" / "include" / name for name in ("asl.h", "asl-kernels.h")]

# What each C type is on the Python side; handles are void pointers there.
CTYPES = {
    "void": None,
    "bool": c_bool,
    "float": c_float,
    "int32_t": c_int32,
    "int64_t": c_int64,
    "uint32_t": c_uint32,
    "size_t": c_size_t,
    "bool *": POINTER(c_bool),
    "float *": POINTER(c_float),
    "int32_t *": POINTER(c_int32),
    "int64_t *": POINTER(c_int64),
    "uint64_t *": POINTER(c_uint64),
    "char *": c_char_p,
    "void *": c_void_p,
    "asl_session *": c_void_p,
    "llama_model *": c_void_p,
    "llama_context *": c_void_p,
    "llama_context_params *": POINTER(bindings.llama_cpp.llama_context_params),
    "asl_session_info *": POINTER(bindings.session_info),
    "asl_attention_case *": POINTER(bindings.attention_case),
    "asl_status": c_int,
    "asl_dequant": c_int,
    "asl_progress_callback": bindings.progress_callback,
}


def source() -> str:
    """The headers without comments."""
    return re.sub(r"//.*", "", "".join(header.read_text(encoding="utf-8") for header in HEADERS))


def to_ctype(declaration: str, named: bool) -> type | None:
    """The ctypes type of `const struct llama_model * model`, or of a type alone."""
    words = re.sub(r"\b(const|struct)\b", "", declaration).replace("*", " * ").split()
    return CTYPES[" ".join(words[:-1] if named else words)]


def functions() -> dict[str, tuple[type | None, list[type]]]:
    """Name -> (result, arguments) of every function declared ASL_API."""
    found = {}
    for result, name, arguments in re.findall(r"^ASL_API\s+([^;()]*?)(\w+)\s*\(([^)]*)\);", source(), re.MULTILINE):
        parts = [] if arguments.strip() in ("", "void") else arguments.split(",")
        found[name] = (to_ctype(result, named=False), [to_ctype(part, named=True) for part in parts])
    return found


def enumeration(name: str) -> dict[str, int]:
    body = re.search(rf"typedef enum {name} \{{(.*?)\}} {name};", source(), re.DOTALL)
    return {key: int(value) for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", body.group(1))}


def test_the_parser_sees_every_function():
    declared = re.findall(r"^ASL_API\b", source(), re.MULTILINE)
    assert len(declared) == len(functions()) > 10


def test_functions_are_bound_as_declared():
    assert functions() == bindings.SIGNATURES


@pytest.mark.parametrize("name", functions())
def test_the_library_exports(name):
    assert callable(getattr(bindings.lib, name.removeprefix("asl_")))
    function = getattr(bindings.llama_cpp.llama_cpp._lib, name)  # what that calls once its integers are C's
    assert (function.restype, function.argtypes) == functions()[name]


def test_session_info_has_the_fields_of_the_header():
    body = re.search(r"typedef struct asl_session_info \{(.*?)\}", source(), re.DOTALL).group(1)
    declared = re.findall(r"(\w+)\s+(\w+)(?:\[(\d+)\])?;", body)
    fields = [(name, ctypes.c_char * int(n) if kind == "char" else CTYPES[kind]) for kind, name, n in declared]
    assert len(fields) == body.count(";")
    assert fields == bindings.session_info._fields_


def test_attention_case_has_the_fields_of_the_header():
    body = re.search(r"typedef struct asl_attention_case \{(.*?)\}", source(), re.DOTALL).group(1)
    declared = re.findall(r"(\w+)\s+(\**) *(\w+);", body)
    fields = [(name, ctypes.c_void_p if pointer else CTYPES[kind]) for kind, pointer, name in declared]
    assert len(fields) == body.count(";")
    assert fields == bindings.attention_case._fields_


@pytest.mark.parametrize("name", ["asl_status", "asl_dequant"])
def test_enum_values(name):
    for key, value in enumeration(name).items():
        assert getattr(bindings, key.removeprefix("ASL_")) == value, key


def test_every_status_has_a_name():
    assert len(enumeration("asl_status")) == 9 and len(enumeration("asl_dequant")) == 5
    known = {
        name
        for name, value in vars(bindings).items()
        if isinstance(value, int) and not isinstance(value, bool) and name.isupper()
    }
    declared = enumeration("asl_status") | enumeration("asl_dequant")
    assert known == {key.removeprefix("ASL_") for key in declared} | {"ABI_VERSION"}


def test_progress_callback():
    result, arguments = re.search(r"typedef (\w+) \(\*asl_progress_callback\)\((.*?)\);", source()).groups()
    expected = ctypes.CFUNCTYPE(CTYPES[result], *(to_ctype(part, named=True) for part in arguments.split(",")))
    callback = bindings.progress_callback
    assert (callback._restype_, callback._argtypes_) == (expected._restype_, expected._argtypes_)


def test_abi_version():
    declared = int(re.search(r"#define ASL_ABI_VERSION (\d+)", source()).group(1))
    assert declared == bindings.ABI_VERSION == bindings.lib.abi_version()
