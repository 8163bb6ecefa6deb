"""`asl-gguf inspect`: the page and its charts against reports of the same prompt, on a tiny model."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from asl_gguf.budget import late
from asl_gguf.cli import main
from asl_gguf.inspect.html_page import page
from asl_gguf.inspect.inspection import Inspection, Question, inspect_prompt, token_texts
from asl_gguf.inspect.plots import Chart
from asl_gguf.inspect.recorder import PolicyRecorder
from asl_gguf.policies import SnapKV, parse_policy
from asl_gguf.policies.contract import LayerScores, Prompt
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_llama import SETTLES_WRITTEN as SETTLES
from tiny_llama import TEXT

POLICIES = [
    SETTLES,
    SETTLES.replace("asl-span", "asl-two-pass"),
    "snapkv",
    "fastkv:tsp_layer=2",
    "fastkv:tsp_layer=2:cache_k=60",
    "gemfilter",
    "gemfilter:window=20",
    "pyramidinfer:min_context=12",
    "streaming_llm",
]
N_LAYER = 6
HOSTILE = "<script>alert(1)</script> & \"quoted\" </pre><img src=x onerror='y'>\x07 héllo\n"


class Page(HTMLParser):
    """The parts of a page that the tests look at; fails where tags are not balanced."""

    VOID = frozenset({"meta", "line", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tokens: list[tuple[set[str], str, str]] = []
        """classes, title, text"""
        self.marks: dict[str, list[str]] = {}
        """titles by chart"""
        self.chart = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.tags.add(tag)
        self.attributes |= found.keys()
        classes = set(found.get("class", "").split())
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "span" and "t" in classes:
            self.tokens.append((classes, found["title"], ""))
        elif tag == "svg":
            self.chart = found["id"]
            self.marks[self.chart] = []
        elif "mark" in classes:
            self.marks[self.chart].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["pre", "span"]:
            classes, title, text = self.tokens.pop()
            self.tokens.append((classes, title, text + data))
        elif self.open[-1:] == ["title"] and self.open[-2] in ("rect", "circle") and self.chart != "map":
            self.marks[self.chart][-1] = data

    def with_class(self, name: str) -> list[int]:
        return [i for i, (classes, _, _) in enumerate(self.tokens) if name in classes]

    @property
    def prompt(self) -> str:
        return "".join(text for _, _, text in self.tokens)


@pytest.fixture
def model(tiny_model) -> str:
    return str(tiny_model("llama"))


@pytest.fixture
def document(tmp_path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(model, tmp_path, capsys):
    """`run(*arguments)`: exit code, stdout, stderr and the page of `asl-gguf inspect -m MODEL ...`."""

    def run(*arguments: object) -> tuple[int, str, str, Path]:
        out = tmp_path / "page.html"
        code = main(["inspect", "-m", model, "-t", "1", "-n", "4", "-o", str(out), *map(str, arguments)])
        return code, *capsys.readouterr(), out

    return run


@pytest.fixture
def inspected(model):
    """`inspected(policy, budget=80, **options)`: an `Inspection` of the test's text."""

    def inspected(policy: str, budget: Any = 80, **options: Any) -> Inspection:
        question = Question(model, TEXT, 1024, 4, options={"n_threads": 1, "n_threads_batch": 1, **options})
        return inspect_prompt(question, budget, parse_policy(policy))

    return inspected


def answered(model: str, policy: str, budget: float | int) -> Llama:
    """A real run of the test's text."""
    llm = Llama(model, n_ctx=1024, n_threads=1, asl_budget=budget, asl_policy=parse_policy(policy))
    llm.create_chat_completion([{"role": "user", "content": TEXT}], max_tokens=4, temperature=0.0)
    return llm


def test_the_page_shows_the_selected_tokens(run, model, document):
    code, out, err, path = run("--prompt-file", document, "--policy", SETTLES)
    assert (code, err) == (0, "") and out.endswith(f"wrote {path}\n")
    found = Page(path.read_text(encoding="utf-8"))
    llm = answered(model, SETTLES, 0.2)
    report = llm.last_prefill
    assert 0 < len(report.selected) < report.prompt_tokens == len(found.tokens)
    assert found.with_class("kept") == list(report.selected)
    window = range(report.prompt_tokens - max(12, report.budget_tokens // 8), report.prompt_tokens)
    assert found.with_class("fixed") == [*range(4), *window]
    assert f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n" in found.prompt
    for text in (f"{report.selection_layer} of layers 0 to 5", "tau=2", f"{report.kept_tokens} of 3", "0.2 ("):
        assert text in found.text, text


def test_one_mark_per_layer(inspected):
    inspection = inspected(SETTLES)
    report, marks = inspection.report, Page(page(inspection)).marks
    assert marks["rows"] == [f"layer {layer}: {n}" for layer, n in enumerate(report.rows_by_layer)]
    assert len(marks["rows"]) == report.n_layer == N_LAYER
    assert marks["variance"] == [f"layer {layer}: {ratio:.4g}" for layer, _, ratio in report.variance]
    assert marks["attention_mass"] == [
        f"layer {layer}: {mass:.4g}" for layer, mass in enumerate(report.attention_mass_by_layer)
    ]
    assert len(marks["attention_mass"]) == report.selection_layer + 1


def test_marks_of_the_selection_layer_and_tau(inspected):
    text = page(inspected(SETTLES))
    layer = inspected(SETTLES).report.selection_layer
    assert text.count(f">selection layer {layer}</text>") == 3 and text.count('class="selection"') == 3
    assert text.count(">tau = 2</text>") == 1 and text.count('class="tau"') == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_kept_tokens_agree_with_the_report(inspected, policy):
    """As many per layer as there are rows; in the deepest layers those selected; unselected prompts are shaded."""
    inspection = inspected(policy)
    report, kept = inspection.report, inspection.kept
    assert report.pruned and kept.shape == (N_LAYER, report.prompt_tokens)
    assert kept.sum(axis=1) == pytest.approx(report.rows_by_layer, rel=1e-5)
    if report.selected:
        assert set(np.flatnonzero(kept[-1])) <= set(report.selected)
    for tokens in inspection.always.values():
        assert all(kept[-1, list(tokens)] == 1)
    found = Page(page(inspection))
    assert found.with_class("kept") == list(report.selected)
    assert [title.split(",")[1] for _, title, _ in found.tokens] == [
        f" in {share:.0%} of layers and heads" for share in inspection.kept_shares
    ]
    shades = [next((int(c[1:]) for c in classes if re.fullmatch(r"s\d+", c)), 0) for classes, _, _ in found.tokens]
    if report.selected:
        assert not any(shades)
    else:
        assert np.array(shades) == pytest.approx(inspection.kept_shares * 10 + 0.5, abs=0.5 + 1e-4)


@pytest.mark.parametrize("budget", [120, "auto:0.05-0.4"])
@pytest.mark.parametrize("found", [(-2, -1), (2, 3)], ids=["found", "all-of-it"])
def test_rows_that_went_when_the_budget_was_decided_are_not_shown(inspected, monkeypatch, found, budget):
    thresholds = late.Thresholds(2, 3, document=2, found=found, chained=(2, 3), summary=found)
    monkeypatch.setitem(late.CALIBRATED, (N_LAYER, 2, 128), thresholds)
    inspection = inspected(SETTLES, budget)
    report, kept = inspection.report, inspection.kept
    assert report.selection_layer == (2 if found[0] < 0 else 3) and report.pruned
    assert kept.sum(axis=1) == pytest.approx(report.rows_by_layer, rel=1e-5) and len(set(report.rows_by_layer)) == 1
    if found[0] > 0:  # earlier layers keep what was selected, as far as they held it
        assert (kept[:, list(report.selected)] > 0).mean() > 0.5
    for tokens in inspection.always.values():
        assert (kept[:, list(tokens)] == 1).all()
    assert Page(page(inspection)).with_class("kept") == list(report.selected)


def test_protected_tokens_are_marked(inspected):
    inspection = inspected(SETTLES, asl_protect=[(5, 9)])
    assert inspection.always["protected"] == {5, 6, 7, 8}
    assert {5, 6, 7, 8} <= set(Page(page(inspection)).with_class("fixed")) & set(inspection.report.selected)


@pytest.mark.parametrize("source", ["question", "raw"])
def test_the_prompt_is_escaped(run, document, source):
    document.write_text(HOSTILE * 8, encoding="utf-8")
    arguments = ["--file", document, "--question", HOSTILE] if source == "question" else ["--prompt-file", document]
    code, _, _, path = run(*arguments, *(["--raw"] if source == "raw" else []))
    found = Page(path.read_text(encoding="utf-8"))
    assert code == 0 and HOSTILE.replace("\x07", "\u2407").strip() in found.prompt
    assert found.prompt.count("<script>") == (9 if source == "question" else 8)
    assert not {"script", "img", "link", "iframe"} & found.tags


def test_the_page_needs_no_network(run, document):
    _, _, _, path = run("--prompt-file", document)
    found = Page(path.read_text(encoding="utf-8"))
    assert not re.search(r"https?://|url\(|@import|javascript:", found.text)
    assert not {"src", "srcset", "data", "xmlns"} & found.attributes
    assert not [link for link in re.findall('href="(.*?)"', found.text) if not re.fullmatch(r"#p\d+", link)]
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "default-src 'none'" in found.text and str(path.parent) not in found.text


@pytest.mark.parametrize("arguments", [("-b", "none"), ("-b", "1.0"), ("--policy", "none")], ids=" ".join)
def test_a_prompt_that_is_not_pruned(run, document, arguments):
    code, _, _, path = run("--prompt-file", document, *arguments)
    found = Page(path.read_text(encoding="utf-8"))
    assert code == 0 and "All tokens were kept" in found.text and "<dt>not pruned</dt>" in found.text
    assert not found.with_class("kept") + found.with_class("fixed") and found.marks.keys() <= {"rows"}


def test_the_demo(run):
    code, out, _, path = run("--demo", "--tokens", 300)
    assert code == 0 and "kept " in out
    assert "What is the special magic number for" in Page(path.read_text(encoding="utf-8")).prompt


WRONG_USE = {
    "policy": (["--demo", "--policy", "x"], "expected one of asl-span, .*, got 'x'"),
    "parameter": (["--demo", "--policy", "asl:x=1"], "expected .*, got 'x=1'"),
    "budget": (["--demo", "--budget", "2.0"], "expected .*, got 2.0"),
    "nothing": ([], "expected a prompt .*, got none of them"),
    "no-file": (["-q", "Why?"], "--question: expected together with --file, got .*"),
    "demo-and-question": (["--demo", "-q", "Why?"], "--demo: expected no .*, got one; .*"),
    "empty-question": (["-f", "document.txt", "-q", ""], "expected a prompt with text .*, got an empty one .*"),
    "missing": (["--prompt-file", "missing.txt"], "expected readable UTF-8 text, got missing.txt: .*"),
    "out": (["--demo", "-o", "missing/page.html"], "--out: expected .*, got missing/page.html"),
    "out-folder": (["--demo", "-o", "."], r"--out: expected .*, got \."),
    "max-tokens": (["--demo", "-n", "0"], "--max-tokens: expected at least 1, got 0"),
    "tokens": (["--demo", "--tokens", "3"], "expected n_tokens to hold .*, got 3; .*"),
}


@pytest.mark.parametrize("arguments, message", WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use(run, document, monkeypatch, arguments, message):
    monkeypatch.chdir(document.parent)
    code, out, err, path = run(*arguments)
    assert (code, out, path.exists()) == (2, "", False)
    assert re.fullmatch(f"asl-gguf: .*{message}\n", err), err


@pytest.mark.parametrize("arguments", [["-f", "x"], ["--demo", "--out"]], ids=str)
def test_wrong_arguments(model, capsys, arguments):
    with pytest.raises(SystemExit) as err:
        main(["inspect", "-m", model, *arguments])
    assert err.value.code == 2 and "error:" in capsys.readouterr().err


def test_png(run, document, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _, _ = run("--prompt-file", document, "--policy", SETTLES, "--png", tmp_path / "png")
    pictures = sorted((tmp_path / "png").iterdir())
    assert code == 0 and all(str(path) in out for path in pictures)
    assert [path.name for path in pictures] == ["attention_mass.png", "rows.png", "variance.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    code, _, err, _ = run("--prompt-file", document, "--png", document)
    assert code == 2 and re.match("asl-gguf: --png: expected a folder .*, got ", err)


def test_png_needs_the_extra(run, document, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err, path = run("--prompt-file", document, "--png", tmp_path / "png")
    assert (code, out, path.exists()) == (2, "", False)
    assert re.fullmatch(r"asl-gguf: --png: expected matplotlib .*, found none; .*'asl_gguf\[plots\]'\n", err)


def test_a_character_comes_with_its_last_token():
    assert token_texts([b"a", b"\xc3", b"\xa9b", b"\xff", b"c", b"\xe2\x82"]) == [
        "a",
        "",
        "éb",
        "\ufffd",
        "c",
        "\ufffd",
    ]
    assert token_texts([]) == []


def test_a_watched_policy_decides_as_ever():
    policy = SnapKV(window=4, kernel_size=3)
    watch = PolicyRecorder(policy)
    assert type(watch.policy) is SnapKV and watch.policy == policy and watch.policy is not policy
    scores = LayerScores(0, np.random.default_rng(0).random((2, 20), dtype=np.float32), 4)
    asked = Prompt(20, 8, 6)
    for _ in range(2):  # the second prompt replaces the first one
        decision = watch.policy.start(asked)(scores)
        assert watch.prompt is asked and [seen for seen, _ in watch.seen] == [scores]
        assert watch.seen[0][1] is decision
    assert np.array_equal(decision.rows, policy.start(asked)(scores).rows)


@pytest.mark.parametrize("y_max", [0.3, 1.0, 1.05, 7.0, 408.0, 32768.0])
@pytest.mark.parametrize("n_layer", [1, 6, 30, 64, 126])
def test_ticks(y_max, n_layer):
    chart = Chart("rows", "", "", "bars", ((0, 1.0),), n_layer, y_max)
    assert chart.y_ticks[0] == 0 and 3 <= len(chart.y_ticks) <= 7 and 0.6 * y_max <= max(chart.y_ticks) <= y_max * 1.001
    assert chart.x_ticks[0] == 0 and len(chart.x_ticks) <= 16 and max(chart.x_ticks) < n_layer
