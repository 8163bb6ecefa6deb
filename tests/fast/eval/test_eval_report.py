"""`asl-gguf report`: intervals, tables of old and new results, one page of figures without network."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.cli import main
from asl_gguf.eval.by_task import by_task, relative_interval
from asl_gguf.eval.figures import drawings
from asl_gguf.eval.results import FULL
from asl_gguf.eval.statistics import decode_speed, mean_of_tasks, run_alike, wilson
from asl_gguf.eval.summary import costs, document, effort, table

POLICIES = [(FULL, None), ("asl", 0.1), ("asl", 0.2), ("snapkv", 0.1), ("snapkv", 0.2)]
NEW = ("kl", "top1_agreement", "kv_bytes", "prefill_seconds", "decode_tokens", "decode_seconds")


def row(task: str, length: int, index: int, policy: str, budget: float | None) -> dict[str, Any]:
    share = budget or 1.0
    return {
        "task": task, "length": length, "index": index, "seed": 1, "policy": policy, "budget": budget,
        "score": 1.0 if policy == FULL else float(index % 2), "nll": 0.5, "n_layer": 8,
        "selection_layer": 3 + index % 3 if policy == "asl" else None, "prefill_share": 0.6 if policy == "asl" else 1.0,
        "kv_share": share, "kv_bytes": int(length * share * 1000), "attention_mass": None if policy == FULL else 0.8,
        "budget_tokens": int(length * share), "prompt_tokens": length, "depths": [index % 101 / 100],
        "model": "m.gguf", "kl": 0.0 if policy == FULL else 0.25, "top1_agreement": 1.0 if policy == FULL else 0.5,
        "prefill_seconds": 2.0 if policy == FULL else 1.5, "decode_tokens": 10, "decode_seconds": 0.5,
    }  # fmt: skip


ROWS = [
    *(row(task, 1000, index, *pair) for task in ("passkey", "vt") for index in range(3) for pair in POLICIES),
    *(row("niah", n, 101 * turn + depth, *pair) for n in (500, 900) for turn in (0, 1) for depth in (0, 50, 100)
      for pair in POLICIES[:2]),
]  # fmt: skip
OLD = [{name: value for name, value in one.items() if name not in NEW} for one in ROWS]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Results of this version."""
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS), encoding="utf-8")
    return tmp_path


def test_wilson():
    """Known values of the interval, e.g. Newcombe 1998: 81 of 263, 15 of 148, 0 of 20."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_statistics():
    assert mean_of_tasks([{"task": "a", "score": 1}, {"task": "a", "score": 0}, {"task": "b", "score": 1}]) == 0.75
    assert decode_speed(ROWS[:4]) == pytest.approx(20.0) and decode_speed(OLD) is None


def test_means_are_of_tasks_that_were_run_alike():
    more = [row("gist", 1000, 0, *pair) for pair in POLICIES[:2]]
    assert [{one["task"] for one in alike} for alike in run_alike([*more, *ROWS[:30]])] == [{"passkey", "vt"}, {"gist"}]
    text = document([*more, *ROWS[:30]])
    assert "| policy | budget | passkey | vt | all |" in text and "| policy | budget | gist | all |" in text
    (speed,) = [drawn for drawn in drawings([*more, *ROWS[:30]]) if drawn.name == "prefill-1000"]
    assert "Tasks: passkey, vt." in speed.text


def test_tables_of_new_and_old_results():
    lines = table(ROWS, 1000).splitlines()
    assert lines[2].endswith("| nll | layer | prefill | K/V | KL | top-1 |")
    assert lines[4].endswith("| 1.00 | 1.00 | 0.00 | 1.00 |") and lines[5].endswith("| 0.60 | 0.10 | 0.25 | 0.50 |")
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert table(OLD, 1000).splitlines()[2].endswith("| nll | layer | prefill | K/V |")
    assert costs(ROWS, 1000).splitlines()[-1] == "| snapkv | 0.2 | 1.50 | 0.75 | 20.0 | 0.2 | 0.80 |"
    assert costs(OLD, 1000) == ""


def test_commands_name_what_was_run():
    text = document(ROWS)
    commands = re.sub(r" \\\n +", " ", text)  # as a shell reads them
    assert (
        "    asl-gguf eval --tasks passkey,vt --lengths 1000 --seed 1 --budgets 0.1,0.2 --policies asl,snapkv --samples 3 --out FOLDER\n"
        "    asl-gguf eval --tasks niah --lengths 500,900 --seed 1 --budgets 0.1 --policies asl --samples 2 --depths 0,50,100 --out FOLDER\n"
    ) in commands
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert not re.search(r"--[a-z]+ \\$", text, re.MULTILINE), "an option stands beside its value"


SPENT = {"seconds": 30.0, "prefill_spent": 0.5, "shared": True, "n_threads": 2, "processor": "Some CPU"}


def test_what_a_run_took_and_what_sharing_saved():
    n, alone = len(ROWS), sum(one["prefill_seconds"] for one in ROWS)
    text = effort([one | SPENT for one in ROWS])
    assert text.startswith(f"{n} answers took {n / 2:.1f} minutes of wall clock (threads: 2; Some CPU).")
    assert f"prefills took {n / 2:.0f} s of these; each by itself would have taken {alone:.0f} s" in text
    assert "by itself" not in effort([one | SPENT | {"shared": False} for one in ROWS])
    assert effort(ROWS) == "" and text in " ".join(document([one | SPENT for one in ROWS]).split())


def test_lines_by_task(folder, capsys):
    """Examples without the full cache's answer do not count; the interval is that of prompts drawn within each task."""
    lines = by_task([*ROWS, row("vt", 1000, 99, "asl", 0.1)], 1000).splitlines()
    assert lines[2] == "| task | prompts | full cache | asl, 0.1 | snapkv, 0.1 | asl, 0.2 | snapkv, 0.2 |"
    assert lines[4].startswith("| passkey | 3 | 1.00, 0.50 | 0.33, +0.00, 0.10, 4, 0.60 | 0.33, +0.00, 0.10, -, 1.00 |")
    assert lines[-1].startswith("| all | 6 | 1.00, 0.50 | 0.33 (0.33 [0.00-0.67]), +0.00, 0.10, 4, 0.60 |")
    assert main(["report", str(folder), "--by-task"]) == 0
    assert capsys.readouterr().out.count("| all |") == 3
    assert main(["report", str(folder), "--by-task", "--markdown", str(folder / "x.md")]) == 2


def test_interval_of_a_share():
    """No spread where all prompts are alike; about that of a mean where the full cache is always right; none without a base."""
    right, half = [{"task": "a", "score": 1.0}] * 100, [{"task": "a", "score": i % 2} for i in range(100)]
    assert relative_interval(right, right) == (1.0, 1.0)
    assert relative_interval(half, right) == pytest.approx((0.4, 0.6), abs=0.02)
    assert relative_interval(right, [{"task": "a", "score": 0.0}] * 100) is None


def test_perplexity_of_texts():
    texts = [row("text:a.txt", 1000, index, *pair) for index in range(2) for pair in POLICIES[:2]]
    lines = table([*ROWS, *texts], 1000).splitlines()
    assert lines[2].endswith("| top-1 | perplexity |")
    assert lines[4].endswith(f"| {math.exp(0.5):.2f} |")
    assert "perplexity" not in table(ROWS, 1000)


def test_lines_of_another_command_name_it():
    peers = [one | {"policy": "kvpress-snapkv", "command": "python peers.py"} for one in ROWS if one["policy"] == "asl"]
    text = document([*ROWS, *peers])
    assert "    python peers.py\n" in text and "asl,snapkv --samples" in text  # asl-gguf eval is not said to run it


@pytest.mark.long
def test_markdown_links_its_figures(folder, capsys):
    pytest.importorskip("matplotlib")
    names = ["--markdown", str(folder / "d" / "page.md"), "--figures", str(folder / "d" / "f"), "--title", "A title"]
    assert main(["report", str(folder), *names]) == 0
    text = (folder / "d" / "page.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]+\]\(([^)]*)\)", text)
    assert len(links) == 5 and all((folder / "d" / link).is_file() for link in links)
    assert text.startswith("# A title\n") and capsys.readouterr().out == ""


class Page(HTMLParser):
    """What a page refers to, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.long
def test_page(folder, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", str(folder), "--html", str(folder / "r" / "page.html"), "--figures", str(folder / "f")]) == 0
    text = (folder / "r" / "page.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open and "script" not in parsed.tags
    assert parsed.links and all(link.startswith("data:image/svg+xml;base64,") for link in parsed.links)
    figures = re.findall(r'<figure id="([^"]*)">', text)
    assert figures == ["heat-niah", "accuracy-1000", "prefill-1000", "layers-1000", "memory-1000"]
    assert sorted(path.stem for path in (folder / "f").iterdir()) == sorted(figures)
    assert parsed.tags.count("table") == 6 and "<td>snapkv</td>" in text
    printed = capsys.readouterr().out
    assert printed.startswith("# Answers under pruning") and "<" not in printed


@pytest.mark.long
def test_figures_are_labelled_and_the_same_each_time():
    pytest.importorskip("matplotlib")
    first, second = drawings(ROWS), drawings(ROWS)
    assert [one.svg() for one in first] == [one.svg() for one in second]
    for drawing in first:
        assert drawing.title and drawing.text.endswith(".")
        axes = [axis for axis in drawing.figure.axes if axis.get_visible()]
        texts = [drawing.figure.get_supxlabel(), *(axis.get_xlabel() for axis in axes)]
        assert any(texts), drawing.name
    heat = first[0].figure.axes
    values = heat[1].images[0].get_array()
    assert heat[1].get_title(loc="left") == "asl, budget 0.1" and values.shape == (3, 2)
    # indices 0 and 101 + 0: one of two found; rows are depths, from the top
    assert values.tolist() == [[0.5, 0.5]] * 3


@pytest.mark.long
def test_figures_of_old_results():
    pytest.importorskip("matplotlib")
    names = [drawing.name for drawing in drawings(OLD)]
    assert names == ["heat-niah", "accuracy-1000", "prefill-1000", "layers-1000"]
    assert [
        drawing.name for drawing in drawings([one for one in ROWS if one["policy"] == FULL and one["task"] == "vt"])
    ]


def test_without_matplotlib(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(folder), "--html", str(folder / "page.html")]) == 2
    assert "asl-gguf report --html: expected matplotlib to be installed, found none; run pip" in capsys.readouterr().err
    assert main(["report", str(folder)]) == 0


def test_a_page_that_cannot_be_written(folder, capsys):
    pytest.importorskip("matplotlib")
    (folder / "file").write_text("")
    assert main(["report", str(folder), "--html", str(folder / "file" / "page.html")]) == 2
    assert "expected files and a folder that can be written" in capsys.readouterr().err
