"""What a report says of itself: in a line, in rows, as HTML."""

from __future__ import annotations

from dataclasses import replace

from asl_gguf.report import DecodeReport, PrefillReport

MIB = 2**20
PRUNED = PrefillReport(
    prompt_tokens=2041,
    kept_tokens=408,
    policy="asl-span",
    budget_tokens=408,
    selection_layer=18,
    n_layer=30,
    token_layers=40000,
    prefill_seconds=5.31,
    rows_by_layer=(408,) * 30,
    kv_bytes=20 * MIB,
    kv_bytes_full=99 * MIB,
    kv_bytes_prompt=int(10.9 * MIB),
    kv_bytes_prompt_full=int(50.6 * MIB),
)


def test_a_line():
    assert str(PRUNED) == "kept 408 of 2,041 tokens at layer 18 of 30; K/V 11 of 51 MiB; first token 5.3 s"
    whole = PrefillReport(300, 300, "asl-span", 300, reason="the prompt fits the budget", kv_bytes_prompt_full=MIB // 3)
    assert str(whole) == "kept all 300 tokens (the prompt fits the budget); K/V 0.33 MiB"


def test_the_memory_is_that_of_this_prompt():
    """Not of n_ctx, which nobody asked about."""
    assert "99" not in str(PRUNED) and "99" not in "".join(PRUNED.lines())
    assert PRUNED.rows()["K/V MiB"] == "11 of 51 for this prompt; 20 allocated, with room for answers"


def test_rows():
    rows = PRUNED.rows(DecodeReport(9, 0.1))
    assert rows["kept tokens"] == "408 of 2041 (asl-span, budget 408)" and rows["selection layer"] == "18 of 30"
    assert rows["answer"] == "10 tokens, 90.0 tokens/s" and "note" not in rows and "host MiB" not in rows
    assert PRUNED.rows()["answer"] == PRUNED.rows(DecodeReport(0, 0.0))["answer"] == "-"


def test_states_and_rows_alone_are_told_apart():
    report = replace(PRUNED, state_bytes=3 * MIB, rows_only=True, reason="a reason")
    assert str(report) == (
        "kept 408 of 2,041 tokens at layer 18 of 30 (K/V rows alone: every layer ran over all tokens, and the prefill got no "
        "shorter; a reason); K/V 11 of 51 MiB beside 3.0 MiB of states; first token 5.3 s"
    )
    assert report.rows()["states MiB"] == "3.0, recurrent, the same for any prompt" and "rows" not in PRUNED.rows()


def test_layers_that_keep_different_numbers():
    """The most that one keeps may be all of them: nobody would see that anything was dropped."""
    report = replace(PRUNED, kept_tokens=2041, rows_by_layer=(2041, 400, *range(300, 328)), selection_layer=1)
    assert str(report).startswith("kept 300 to 2,041 of 2,041 tokens by layer; K/V 11 of 51 MiB")
    assert report.rows()["kept tokens"] == "300 to 2041 of 2041 by layer (asl-span, budget 408)"
    sliding = replace(PRUNED, rows_by_layer=(408, 2041, 408), sliding_layers=(1,))
    assert str(sliding) == str(PRUNED)


def test_what_is_protected_is_said():
    assert str(replace(PRUNED, protected_tokens=1200)).startswith(
        "kept 408 of 2,041 tokens at layer 18 of 30 (1,200 protected); "
    )


def test_html_is_escaped():
    report = PrefillReport(9, 9, "<script>", 9, reason="a & <b>")
    page = report._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; &lt;b&gt;" in page
    assert page.startswith("<table>") and page.count("<tr>") == page.count("</tr>") == len(report.rows())
