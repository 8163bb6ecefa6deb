"""llama-cpp-python's own tests, run on our class: without a budget, and with one.

They come from the source distribution that the build has fetched. Models that they would download are replaced by the default
model and a tiny recurrent one; what needs another is skipped, and listed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEEDS_DOWNLOAD = {
    # exact texts of Qwen3.5-0.8B
    "test_real_model",
    "test_real_llama",
    "test_real_llama_repeated_prompt_cache",
    # a hybrid model
    "test_hybrid_model_prompt_cache_reset",
    "test_exact_cached_prompt_reuse_matches_fresh[llama_cpp_hybrid_model_path-False-True]",
    "test_loaded_exact_cached_prompt_reuse_matches_fresh[llama_cpp_hybrid_model_path-False-True]",
    "test_ram_cache_exact_prompt_hit_matches_fresh[llama_cpp_hybrid_model_path-False-True]",
    "test_shorter_prompt_prefix_reuse_matches_fresh[llama_cpp_hybrid_model_path-False-True]",
    # an embedding model
    "test_real_llama_embeddings",
}

PLUGIN = """
import sys, types, warnings

import numpy as np
import pytest

import asl_gguf
import llama_cpp

MODELS, OPTIONS = {models!r}, {options!r}


class Ours(asl_gguf.Llama):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **OPTIONS, **kwargs)


llama_cpp.Llama = Ours


def download(repo_id, filename):
    return MODELS.get(repo_id) or pytest.skip(f"needs {{repo_id}}")


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


hub, scipy, special = (types.ModuleType(name) for name in ("huggingface_hub", "scipy", "scipy.special"))
hub.hf_hub_download, special.log_softmax = download, log_softmax
sys.modules.update({{"huggingface_hub": hub, "scipy": scipy, "scipy.special": special}})
"""


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of its tests, and the one that they are run from."""
    archives = sorted(ROOT.glob("build/*/source/llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip("the build did not fetch the source distribution (ASL_LLAMA_CPP_DIR)")
    archive = archives[-1]
    folder = tmp_path_factory.mktemp("parent")
    name = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            if member.name.startswith(f"{name}/tests/") and member.isfile():
                (folder / Path(member.name).name).write_bytes(files.extractfile(member).read())
    return folder, archive.parent / name


@pytest.mark.parametrize("options", [{}, {"asl_budget": 20, "asl_min_prompt": 1}], ids=["no-budget", "budget"])
def test_parent_suite(parent, options, smollm2, tiny_model, tmp_path):
    tests, cwd = parent
    models = {"ggml-org/models": str(smollm2), "QuantFactory/mamba-130m-hf-GGUF": str(tiny_model("mamba"))}
    (tmp_path / "ours.py").write_text(PLUGIN.format(models=models, options=options))
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ours", "-p", "no:cacheprovider", f"--junitxml={report}"]
    found = subprocess.run(
        [*command, "--rootdir", str(tests), str(tests)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    outcomes: dict[str, set[str]] = {"passed": set(), "skipped": set(), "failed": set()}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[outcome].add(case.get("name"))
    assert not outcomes["failed"], found.stdout[-3000:]
    assert outcomes["skipped"] == NEEDS_DOWNLOAD
    assert len(outcomes["passed"]) == 17
