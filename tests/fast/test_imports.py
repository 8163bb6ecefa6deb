"""Imports flow one way: each package imports those before it in ORDER, and no other."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from pathlib import Path

import asl_gguf

ROOT = Path(asl_gguf.__file__).parent
ORDER = (
    "_version errors report policies native models budget cache engine drop_in server inspect eval bench cli".split()
)
HEIGHT = {part: height for height, part in enumerate(ORDER)}
FLAT = {"__init__", "__main__", "_version", "errors", "report"}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
NUMPY_ALONE = {
    "__future__", "abc", "ast", "collections", "dataclasses", "math", "numpy", "re", "typing", "html"
}  # fmt: skip


def imports(module: str) -> set[str]:
    """What a module imports: asl_gguf's own as "engine.prefill.prefill" or "policies.Full"."""
    return {name.removeprefix("asl_gguf.") for name in _all_imports(module) if name.startswith("asl_gguf.")}


def foreign(module: str) -> set[str]:
    """The other packages that a module imports."""
    return {part(name) for name in _all_imports(module) if not name.startswith("asl_gguf.")}


def _all_imports(module: str) -> set[str]:
    found = set()
    for node in statements(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = [f"asl_gguf.{module}".rsplit(".", node.level)[0]] if node.level else []
            found |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    return found


@functools.cache
def statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Of a file, those that import."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def part(module: str) -> str:
    return module.split(".")[0]


def test_every_package_has_its_place():
    assert {part(module) for module in MODULES} - {"__init__", "__main__"} <= set(ORDER)
    assert {module for module in MODULES if "." not in module} <= FLAT


def test_no_import_goes_back_up():
    back = [
        f"{module} imports {name}"
        for module in MODULES
        if module not in ("__init__", "__main__")
        for name in sorted(imports(module))
        if HEIGHT.get(part(name), -1) > HEIGHT[part(module)]
    ]
    assert not back, "\n".join(back)


def test_the_picture_shows_the_imports():
    """Each arrow is an import, and what is imported can be reached by arrows."""
    page = (Path(__file__).parents[2] / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lowest = {"_version": "errors", "report": "errors"}  # one room in the picture
    found = {
        (lowest.get(part(module), part(module)), lowest.get(part(name), part(name)))
        for module in MODULES
        if module not in ("__init__", "__main__")
        for name in imports(module)
        if part(name) in ORDER
    }
    arrows = set(re.findall(r"^    (\w+) --> (\w+)$", page, re.M))
    assert arrows <= found
    reached = set(arrows)
    for middle in ORDER:
        reached |= {(a, c) for a, b in reached if b == middle for d, c in reached if d == middle}
    assert {(a, b) for a, b in found if a != b} <= reached


def test_no_modules_import_each_other():
    """Not for types either."""
    graph = {
        module: {other for name in imports(module) for other in (name, name.rpartition(".")[0]) if other in MODULES}
        for module in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names them


def test_the_server_does_without_the_drop_in():
    assert not [
        name for module in MODULES if part(module) == "server" for name in imports(module) if part(name) == "drop_in"
    ]


def test_policies_and_reports_need_numpy_alone():
    low = [module for module in MODULES if part(module) in ("errors", "report", "policies")]
    for module in low:
        others = foreign(module) - NUMPY_ALONE
        assert not others, f"{module} imports {others}"


def test_the_tasks_need_no_engine():
    for module in (module for module in MODULES if module.startswith("eval.tasks")):
        assert {part(name) for name in imports(module)} <= {"errors", "eval"}, module
        assert not foreign(module) & {"numpy", "llama_cpp", "gguf"}, module


def test_llama_cpp_is_imported_through_our_library():
    """native.loading imports it, so that our build of it is the one that loads; what follows takes it from bindings."""
    found = {module for module in MODULES if "llama_cpp" in foreign(module)}
    assert found <= {"native.loading", "native.bindings"}  # bindings: for type checkers alone


def test_the_parser_resolves_relative_imports():
    assert {"errors.PromptError", "policies.Full", "engine.layers.Layers"} <= imports("engine.prefill")
    assert "numpy" in foreign("engine.prefill") and "inspect" in foreign("drop_in.surface")
    assert {"policies.ranking", "policies.contract.Decision"} <= imports("policies.asl")
    assert {"errors.OptionError", "policies.asl.ASL"} <= imports("policies.__init__")


def test_a_back_edge_is_found(monkeypatch, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from ..drop_in.llama import Llama\n", encoding="utf-8")
    monkeypatch.setitem(MODULES, "policies.bad", bad)
    assert imports("policies.bad") == {"drop_in.llama.Llama"}
    assert HEIGHT["drop_in"] > HEIGHT["policies"]


TESTS = Path(__file__).parent


def test_each_package_has_a_folder_of_tests():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    assert folders == packages


def test_no_test_module_imports_another():
    """What they share lies beside tests/harness.py, or is a fixture in a conftest.py."""
    for path in TESTS.parent.rglob("*.py"):
        for node in statements(path):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if name.startswith(("test_", "conftest"))], path
