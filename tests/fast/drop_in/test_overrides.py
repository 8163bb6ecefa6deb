"""`kv_overrides` with values that no model has: an error as the model is loaded, and never the end of the process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import AslError, Llama, ModelError, OptionError, OptionTypeError
from asl_gguf.native import context
from asl_gguf.native.bindings import lib
from harness import llama_cpp
from tiny_llama import DOCUMENT, greedy

ENDING: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"llama.block_count": 0},
        {"llama.block_count": -1},
        {"llama.block_count": 2**31},
        {"llama.block_count": 2**63 - 1},
        {"llama.expert_count": 3},
        {"llama.expert_count": -1},
        {"llama.nextn_predict_layers": 7},
        {"llama.expert_group_count": 7},
        {"llama.attention.layer_norm_rms_epsilon": -1.0},
    ],
    "gemma3": [
        {"gemma3.rope.dimension_count": 0},
        {"gemma3.rope.dimension_count": 7},
        {"gemma3.rope.dimension_count": 2**63 - 1},
        {"gemma3.attention.layer_norm_rms_epsilon": -1.0},
    ],
}
"""architecture -> what ends the process in llama_cpp.Llama, as it is made or at the first prompt"""
CASES = [(architecture, overrides) for architecture, each in ENDING.items() for overrides in each]


@pytest.mark.parametrize("budget", [0.4, None])
@pytest.mark.parametrize("architecture, overrides", CASES, ids=str)
def test_what_would_end_the_process(make, architecture, overrides, budget):
    with pytest.raises((ModelError, OptionError), match="kv_overrides"):
        make(architecture=architecture, asl_budget=budget, kv_overrides=overrides)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes of this kind")
def test_the_parent_ends_there(tiny_model):
    """Else there is nothing to mend any more."""
    code = f"import llama_cpp; llama_cpp.Llama({str(tiny_model('llama'))!r}, kv_overrides={{'llama.block_count': 0}})"
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    code = f"import asl_gguf; {code}"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGABRT


@pytest.mark.parametrize(
    "overrides, error, match",
    [
        ({"llama.rope.freq_base": math.nan}, OptionError, "expected finite numbers, got nan for llama.rope.freq_base"),
        ({"llama.rope.freq_base": math.inf}, OptionError, "expected finite numbers, got inf"),
        (
            {"llama.context_length": 10**5000},
            OptionError,
            "expected integers of 64 bits, got an integer of 16610 bits for",
        ),
        ({5: 5}, OptionTypeError, "expected keys as str, got 5"),
        ({"llama.rope.dimension_count": 3}, OptionError, "expected an even number from 2 to 65534 for llama.rope"),
    ],
)
def test_values_that_are_none(make, overrides, error, match):
    with pytest.raises(error, match=f"kv_overrides: {match}"):
        make(kv_overrides=overrides)


def test_the_message_has_the_assertion(make):
    with pytest.raises(
        ModelError, match=r"expected values that .*\.gguf can be computed with, got .*-1\.0.*GGML_ASSERT\(eps >= 0"
    ):
        make(kv_overrides={"llama.attention.layer_norm_rms_epsilon": -1.0})


def test_a_file_without_layers(tiny_model, tmp_path):
    """Its own header says so: the same assertion."""
    from gguf import GGUFReader

    path = tmp_path / "none.gguf"
    path.write_bytes(Path(tiny_model("llama")).read_bytes())
    reader = GGUFReader(path, "r+")
    reader.fields["llama.block_count"].parts[-1][0] = 0
    reader.data.flush()
    for options in ({}, {"asl_budget": 0.4}):
        with pytest.raises(AslError):
            Llama(str(path), n_ctx=512, **options)


def test_good_overrides_change_nothing_else(make):
    """A token is decoded to try them, and forgotten."""
    plain, tried = make(asl_budget=0.4), make(asl_budget=0.4, kv_overrides={"llama.context_length": 4096})
    assert context.n_evaluated(tried.ctx) == 0 and tried.n_tokens == 0
    assert llama_cpp.llama_n_threads(tried.ctx) == 1 and llama_cpp.llama_perf_context(tried.ctx).n_eval <= 1
    assert greedy(plain, DOCUMENT) == greedy(tried, DOCUMENT)
    embedding = make(embedding=True, kv_overrides={"llama.context_length": 4096})
    assert embedding.embed("On day 3") == make(embedding=True).embed("On day 3")
    assert make(vocab_only=True, kv_overrides={"llama.context_length": 4096}).tokenize(b"On day 3")


def test_assertions_end_the_process_elsewhere():
    """They throw in those calls alone, and in the thread that asks for it."""
    code = (
        "import ctypes, threading; from asl_gguf.native import context; from asl_gguf.native.bindings import llama_cpp as c\n"
        "with context.assertions_caught(): pass\n"
        "def fail(): c.llama_set_adapters_lora(None, None, 1, None)\n"
        "{}"
    )
    inside = "with context.assertions_caught():\n    t = threading.Thread(target=fail); t.start(); t.join()"
    for last in ("fail()", inside):
        environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", code.format(last)], env=environment, capture_output=True, check=False, text=True
        )
        assert ended.returncode not in (0, 1) and "invalid llama_set_adapters_lora call" in ended.stderr
    lib.throw_on_abort(False)  # was off: nothing happens
