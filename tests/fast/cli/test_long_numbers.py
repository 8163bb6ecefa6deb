"""Numbers of thousands of digits on the command line and in options: one line that can be read, and exit code 2."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asl_gguf import Llama, OptionError
from asl_gguf.cli import main
from asl_gguf.errors import shown

DIGITS = "9" * 5000
WRONG = [
    *(f"--protect={text}" for text in (f"0:{DIGITS}", f"{DIGITS}:", f"-{DIGITS}:{DIGITS}", DIGITS)),
    *(
        f"--budget={text}"
        for text in (f"fit:{DIGITS}GiB", f"ttft:{DIGITS}s", f"auto:{DIGITS}", f"0:{DIGITS}", f"{DIGITS}%")
    ),
    *(
        f"--policy={text}"
        for text in (f"asl-span:min_layer={DIGITS}", f"snapkv:window={DIGITS}", "asl-span:tau=1e400", DIGITS)
    ),
    *(
        f"--{name}={DIGITS}"
        for name in ("ctx-size", "decode-ctx", "max-tokens", "seed", "top-k", "threads", "gpu-layers")
    ),
    *(f"--{name}={DIGITS}" for name in ("temp", "top-p", "guard", "kv-type", "dequant", "n-ubatch", "full-kv")),
]


@pytest.mark.parametrize("argument", WRONG, ids=lambda text: text[:30])
def test_of_the_command(model, document, capsys, argument):
    try:
        code = main(["run", "-m", model, "-f", str(document), "-p", "What?", "-n", "2", "-t", "1", argument])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if re.match(r"asl-gguf", line)]
    assert (code, out, len(lines)) == (2, "", 1) and len(lines[0]) <= 1100 and "Traceback" not in err


@pytest.mark.parametrize(
    "options",
    [
        {"asl_budget": "ttft:" + "9" * 400 + "s"},
        {"asl_budget": f"fit:{DIGITS}GiB"},
        {"asl_budget": -(10**5000)},
        {"asl_budget": 0.4, "asl_min_prompt": -(10**5000)},
        {"asl_budget": 0.4, "asl_room": 10**5000},
        {"asl_budget": 0.4, "asl_decode_ctx": 10**5000},
        {"asl_budget": 0.4, "asl_guard": 10**5000},
        {"asl_budget": 0.4, "asl_policy": f"asl-span:tau={10**400}"},
        {"asl_budget": 0.4, "asl_policy": 10**5000},
        {"asl_budget": 0.4, "asl_protect": 10**5000},
        {"asl_budget": 0.4, "asl_full_kv": 10**5000},
        {"asl_budget": 0.4, "asl_dequant": 10**5000},
        {"asl_budget": 0.4, "asl_progress": 10**5000},
        {"asl_budget": 0.4, "asl_calibration": 10**5000},
        {"n_ctx": 10**5000},
        {"n_batch": 10**5000},
    ],
    ids=lambda options: str(list(options)),
)
def test_of_options(tiny_model, options: dict[str, Any]):
    with pytest.raises(OptionError) as caught:
        Llama(str(tiny_model("llama")), **options)
    assert len(str(caught.value)) < 600


def test_budgets_and_spans_of_any_length_work(make):
    """As much as there is."""
    llm = make(asl_budget=10**5000, asl_protect=(0, 10**5000), asl_min_prompt=10**5000)
    assert llm("On day 3", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_shown():
    assert shown(10**5000) == "an integer of 16610 bits" and shown("x" * 100) == f"'{'x' * 76}..." and shown(7) == "7"
