"""asl_gguf.server.bindings says what native/server/asl-serve.h says."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from asl_gguf.errors import LibraryError
from asl_gguf.server import bindings

HEADER = Path(__file__).parents[3] / "native" / "server" / "asl-serve.h"
TYPES = {
    "int32_t": ctypes.c_int32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "bool": ctypes.c_bool,
    "void *": ctypes.c_void_p,
    "const char *": ctypes.c_char_p,
    "const int32_t *": ctypes.POINTER(ctypes.c_int32),
    "const asl_serve_span *": ctypes.POINTER(bindings.Span),
    "const asl_serve_adapter *": ctypes.POINTER(bindings.Adapter),
    "char": ctypes.c_char * 16384,
}
STRUCTS = {
    "sizes": bindings.Sizes, "span": bindings.Span, "adapter": bindings.Adapter, "prompt": bindings.Prompt, "answer": bindings.Answer,
}  # fmt: skip


def source() -> str:
    return re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))


def body(name: str) -> str:
    return re.search(rf"typedef (?:struct|enum) asl_serve_{name} \{{(.*?)\}} asl_serve_{name};", source(), re.DOTALL)[1]


@pytest.mark.parametrize("name", STRUCTS)
def test_structs(name):
    fields = re.findall(r"^\s*(.*?)(\w+)(\[\d+\])?;", body(name), re.MULTILINE)
    assert [(field, TYPES[kind.strip()]) for kind, field, _ in fields] == STRUCTS[name]._fields_


def test_the_engine_has_the_functions_in_their_order():
    names = re.findall(r"\(\*(\w+)\)", body("engine"))
    assert ["user_data", *names, "wait_seconds"] == [name for name, _ in bindings.Engine._fields_]
    for name, arguments in re.findall(r"\(\*(\w+)\)\((.*?)\);", body("engine"), re.DOTALL):
        assert len(dict(bindings.Engine._fields_)[name]._argtypes_) == arguments.count(",") + 1


def test_statuses_and_version():
    for name, value in re.findall(r"ASL_SERVE_(\w+)\s*= (\d+)", body("status")):
        assert getattr(bindings, name) == int(value)
    assert f"ASL_SERVE_ABI_VERSION {bindings.ABI_VERSION}\n" in source()


def test_functions():
    assert set(re.findall(r"^ASL_SERVE_API\s+.*?(\w+)\(", source(), re.MULTILINE)) == set(bindings.SIGNATURES)


def test_a_missing_library_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(bindings, "library_path", lambda: tmp_path / "libllama-server-impl.so")
    with pytest.raises(LibraryError, match="make serve"):
        bindings.load()
