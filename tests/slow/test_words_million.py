"""1,000,000 equal characters under each pre-tokenizer, in a process of its own: no text may end it.

Some of them; all with ASL_WORDS=all in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chats import environment
from patience import PATIENCE
from vocab_gguf import PRE_TOKENIZERS, write_vocabulary

PROGRAM = """
import sys, time
from asl_gguf.native.vocabulary import load_model, tokenize
model = load_model(sys.argv[1], vocab_only=True)
runs = ("a", "A", " ", ".", "-", "7", "\\n", "\\t", "\\u96ea", "\\U0001f600")
mixed = ("a ", " \\n", ".-", "aA7 .-", "'s 1,000\\n\\n", "\\u96eaa")
for run in runs + mixed:
    for end in ("", "x"):
        begin = time.process_time()
        n_tokens = len(tokenize(model, run * (1_000_000 // len(run)) + end))
        print(repr(run + end), n_tokens, round(time.process_time() - begin, 2), file=sys.stderr)
        assert 0 < n_tokens <= 4_000_002
"""
SOME = (
    "gpt-4o",
    "tekken",
    "deepseek-llm",
    "deepseek-v3",
    "superbpe",
    "jais-2",
    "youtu",
    "afmoe",
    "poro-chat",
    "exaone-moe",
)
"""of expressions that differ most; tests/fast/native/test_words.py has shorter runs under all"""


@pytest.mark.parametrize("pre", PRE_TOKENIZERS if os.environ.get("ASL_WORDS") == "all" else SOME)
def test_a_million(pre, tmp_path: Path):
    assert pre in PRE_TOKENIZERS
    path = write_vocabulary(tmp_path / "vocab.gguf", pre)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-2000:]
