"""Imports flow down only: errors, types <- reference <- policies <- engine <- llama <- server, bench, eval <- cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import asl_gguf

ROOT = Path(asl_gguf.__file__).parent
LAYERS = ["errors types", "reference", "policies", "engine calibration", "llama", "server bench eval", "cli"]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts.split()}
LOWER = {"errors", "types", "reference", "policies"}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str) -> set[str]:
    """What a module imports: asl_gguf's own as "engine" or "policies.base", others as "numpy"."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("asl_gguf.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            path = [*base, *(node.module.removeprefix("asl_gguf.").split(".") if node.module else [])]
            package = not node.module or ".".join([*path, "__init__"]) in MODULES or path == ["asl_gguf"]
            path = [] if path == ["asl_gguf"] else path
            found |= {".".join([*path, alias.name] if package else path) for alias in node.names}
    return found


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__"])
def test_direction(module):
    above = {name for name in imports(module) if HEIGHT.get(part(name), -1) > HEIGHT.get(part(module), len(LAYERS))}
    assert not above, f"{module} imports {', '.join(sorted(above))}"
    if part(module) not in ("cli", "__main__"):
        assert "cli" not in map(part, imports(module))
    if HEIGHT.get(part(module), 3) < HEIGHT["engine"]:
        assert "llama_cpp" not in map(part, imports(module))


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in LOWER])
def test_the_lower_modules_need_numpy_alone(module):
    known = {"__future__", "abc", "ast", "collections", "dataclasses", "math", "typing", "numpy"}
    assert {part(name) for name in imports(module)} <= known | LOWER


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("eval.tasks")])
def test_the_tasks_need_no_engine(module):
    outside = {"numpy", "llama_cpp", "gguf"} | set(map(part, MODULES))
    assert set(map(part, imports(module))) & outside <= {"errors", "demo_text", "demo_words", "eval"}


def test_llama_cpp_is_imported_through_our_library():
    """_library imports it, so that our build of it is the one that loads; what follows takes it from _native."""
    found = {part(module) for module in MODULES if "llama_cpp" in map(part, imports(module))}
    assert found <= {"_library", "_native", "llama", "server"}  # _native: for type checkers alone


def test_the_parser_resolves_relative_imports():
    assert {"errors", "policies.Full", "session", "types", "numpy"} <= imports("engine")
    assert {"reference", "types", "policies.base", "dataclasses"} <= imports("policies.snapkv") | {"reference"}
    assert "errors" in imports("policies.__init__") and "policies.asl" in imports("policies.__init__")
