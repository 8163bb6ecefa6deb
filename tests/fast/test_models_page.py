"""docs/MODELS.md is what `make conformance` wrote from the sources as they are, and its reasons are those of the code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("conformance_run", ROOT / "tests" / "conformance" / "run.py")
conformance = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = conformance  # dataclasses look there
_SPEC.loader.exec_module(conformance)

PAGE = (ROOT / "docs" / "MODELS.md").read_text(encoding="utf-8")


def test_it_is_as_new_as_its_sources():
    if conformance.DIGEST not in PAGE:
        pytest.skip("docs/MODELS.md was written before it named its sources; run make conformance")
    assert f"{conformance.DIGEST}{conformance.digest()}`." in PAGE, "run make conformance, which takes about an hour"


def test_the_digest_changes_with_every_source(monkeypatch, tmp_path):
    digests = set()
    for changed in (None, *conformance.DECIDING):
        for name in conformance.DECIDING:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes() + (b" " if name == changed else b""))
        monkeypatch.setattr(conformance, "ROOT", tmp_path)
        digests.add(conformance.digest())
    assert len(digests) == 1 + len(conformance.DECIDING)


def test_its_counts_are_those_of_its_rows():
    states = re.findall(
        r"^\| \S+ \(\S+\) \|.*\| (bit-exact|refused:|failed:|stock fails:|llama.cpp's test makes)", PAGE, re.MULTILINE
    )
    n_models = sum(state != "llama.cpp's test makes" for state in states)
    assert f"**{states.count('bit-exact')} of {n_models} files are pruned**" in PAGE
    assert f"{states.count('refused:')} are refused" in PAGE and f"{states.count('failed:')} failed" in PAGE


def test_each_reason_is_one_of_the_code():
    """Up to numbers and names."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "native" / "src").glob("*.cpp"))]
    literals = [one for text in texts for one in re.findall(r'"((?:[^"\\\n]|\\.)*)"', text)]
    parts = {one.strip() for one in literals if len(one) > 12}
    for reason in set(re.findall(r"\| refused: (.*) \|$", PAGE, re.MULTILINE)):
        assert any(part in reason for part in parts), reason
