"""What the page of `asl-gguf inspect` opens with: the answer, a map, and links from one kept passage to the next."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.inspect.html_page import page
from asl_gguf.inspect.inspection import Inspection
from asl_gguf.inspect.passages import density, kept_tokens, passages
from asl_gguf.policies import ASL
from asl_gguf.report import DecodeReport, PrefillReport

N_TOKENS = 1000
SELECTED = (0, 1, 2, *range(100, 120), 123, 124, *range(500, 510), 515, 999)


@pytest.fixture
def inspection() -> Inspection:
    kept = np.zeros((4, N_TOKENS), dtype=np.float32)
    kept[:, list(SELECTED)] = 1.0
    report = PrefillReport(
        prompt_tokens=N_TOKENS, kept_tokens=len(SELECTED), policy="asl", budget_tokens=50, selected=SELECTED, n_layer=4,
        selection_layer=2, rows_by_layer=(50, 50, 50, 37), token_layers=3037, kv_bytes_prompt=2**20, kv_bytes_prompt_full=2**22,
    )  # fmt: skip
    pieces = tuple(f"w{i} " for i in range(N_TOKENS))
    return Inspection(
        "m.gguf", ASL(), 50, report, DecodeReport(3, 0.1), "<42>", pieces, kept, {"sink": frozenset({0})}, ()
    )


def test_passages(inspection):
    """A few dropped tokens do not end one; more do."""
    found = passages(inspection)
    assert [(one.begin, one.end) for one in found] == [(0, 3), (100, 125), (500, 510), (515, 516), (999, 1000)]
    assert found[0].excerpt == "w0 w1 w2" and found[1].excerpt.endswith("…") and len(found[1].excerpt) == 60


def test_density(inspection):
    parts = density(inspection, 10)
    assert [begin for begin, _, _ in parts] == list(range(0, 1000, 100)) and parts[-1][1] == N_TOKENS
    assert sum(share * (end - begin) for begin, end, share in parts) == pytest.approx(len(SELECTED))
    assert len(density(inspection, 5000)) == N_TOKENS


def test_without_selected_tokens_most_heads_count(inspection):
    kept = np.zeros((4, N_TOKENS), dtype=np.float32)
    kept[:2, :10] = kept[:1, 10:20] = 1.0
    rows = replace(inspection, kept=kept, report=replace(inspection.report, selected=(), selection_layer=None))
    assert np.flatnonzero(kept_tokens(rows)).tolist() == list(range(10))


def test_the_order_of_the_page(inspection):
    """The answer first, then the map, the text, the facts and the charts."""
    text = page(inspection)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:4] == ["Answer", "Where the kept text lies", "Prompt", "How it was chosen"] and len(headings) == 7
    assert "&lt;42&gt;" in text and "kept 37 to 50 of 1,000 tokens by layer; K/V 1.0 of 4.0 MiB" in text
    assert text.count("<small>") == 7 and "prefers-color-scheme: dark" in text


def test_links_lead_to_passages(inspection):
    text = page(inspection)
    targets = re.findall(r'id="(p\d+)" href="#(p\d+)"', text)
    assert targets == [("p1", "p2"), ("p2", "p3"), ("p3", "p4"), ("p4", "p5"), ("p5", "p1")]
    begins = [int(token) for token in re.findall(r'</a><span class="t[^"]*" title="token (\d+),', text)]
    assert begins == [0, 100, 500, 515, 999]
    assert set(re.findall('href="(.*?)"', text)) == {f"#p{i}" for i in range(1, 6)}
    assert "<summary>5 kept passages</summary>" in text


def test_each_bar_leads_to_what_is_kept_there(inspection):
    found = passages(inspection)
    bars = re.findall(r'<a href="#p(\d+)"><rect class="here" x="(\d+)" y="[\d.]+" width="(\d+)"', page(inspection))
    assert len(bars) > 5
    for number, begin, width in bars:
        one = found[int(number) - 1]
        assert one.begin < int(begin) + int(width) and int(begin) < one.end, (number, begin)


def test_a_whole_prompt_has_no_map(inspection):
    whole = replace(
        inspection.report, kept_tokens=N_TOKENS, selected=(), selection_layer=None, rows_by_layer=(N_TOKENS,) * 4
    )
    text = page(replace(inspection, report=whole))
    assert "Where the kept" not in text and 'class="jump"' not in text and "All tokens were kept" in text
