"""No kind of request leaves memory behind: what malloc has handed out comes back to where it was."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cut_gguf import cut

SCRIPT = Path(__file__).parents[3] / "bench" / "server" / "leaks.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc says what it has handed out")
def test_requests_leave_no_memory_behind(smollm2, tmp_path, record_property):
    spec = importlib.util.spec_from_file_location("leaks", SCRIPT)
    assert spec and spec.loader
    leaks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(leaks)
    model = tmp_path / "cut.gguf"
    cut(smollm2, model, 4)
    with leaks.watched(model) as (server, watch):
        left = leaks.growth(server, watch, list(leaks.KINDS), 18, print)
    record_property("bytes_a_round", round(left))
    # of 14 kinds: a context, logits or cells of one of them are more. What fills once is some 7 KiB a round by then
    assert left < 32768
