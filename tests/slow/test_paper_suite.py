"""`asl-gguf eval --suite paper`, whole, at tiny lengths: every task, policy and file reader, up to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asl_gguf.cli import main
from asl_gguf.eval.results import FULL, read_rows
from asl_gguf.eval.suites import SUITES

pytest.importorskip("matplotlib")

LENGTH, BUDGET = 2000, 120
DEPTHS = (0, 50, 100)


def write_files(folder: Path) -> dict[str, str]:
    """Made-up files in the form of SQuAD, HotpotQA and InfiniteBench, and a haystack: the options that name them."""
    (folder / "essays.txt").write_text(" ".join(f"Sentence number {i} of the essays." for i in range(400)))
    articles = [
        {
            "title": str(a),
            "paragraphs": [
                {
                    "context": f"Paragraph {a}.{i}. {'about something. ' * 8}The answer is Ans{a}x{i}.",
                    "qas": [{"question": f"What does {a}.{i} say?", "answers": [{"text": f"Ans{a}x{i}"}]}],
                }
                for i in range(4)
            ],
        }
        for a in range(12)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    context = ["words to fill this up here."]
    questions = [
        {
            "question": f"Who is {i}?",
            "answer": f"Name{i}",
            "context": [[f"T {i}.{k}", [f"Sentence of Name{i}. ", *context]] for k in range(6)],
        }
        for i in range(30)
    ]
    (folder / "hotpot.json").write_text(json.dumps(questions))
    book = f"First words. {'middle words of a book ' * 200}Last words."
    files = folder / "infinitebench"
    files.mkdir()
    for name in ("longbook_qa_eng", "longbook_qa_chn", "longbook_sum_eng", "longdialogue_qa_eng"):
        lines = [{"context": book, "input": f"Who {i}?", "answer": [f"A{i}"]} for i in range(4)]
        (files / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("longbook_choice_eng", "code_debug"):
        line = {"context": book, "input": "Who?", "answer": ["tea"], "options": ["tea", "milk", "x", "y"]}
        (files / f"{name}.jsonl").write_text("\n".join([json.dumps(line)] * 4))
    return {
        "--haystack": str(folder / "essays.txt"),
        "--squad": str(folder / "squad.json"),
        "--hotpotqa": str(folder / "hotpot.json"),
        "--infinitebench": str(files),
    }


def test_every_task_to_the_page(tiny_model, tmp_path):
    model = str(tiny_model("llama", n_layer=12))
    files = [word for pair in write_files(tmp_path).items() for word in pair]
    out = tmp_path / "results"
    options = {
        "--lengths": LENGTH,
        "--budgets": BUDGET,
        "--samples": 1,
        "--depths": ",".join(map(str, DEPTHS)),
        "--chat": "plain",
        "-t": 1,
        "-m": model,
        "--out": out,
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    assert main(["eval", "--suite", "paper", *arguments, *files]) == 0
    rows = read_rows(out / "results.jsonl")
    found = {(row["task"].partition(":")[0], row["policy"]) for row in rows}
    wanted = {(task, policy) for part in SUITES["paper"] for task in part.tasks for policy in (FULL, *part.policies)}
    assert found == wanted
    assert sum(row["task"] == "niah" or row["task"].startswith("niah:") for row in rows) == len(DEPTHS) * len(
        {FULL, *SUITES["paper"][2].policies}
    )
    assert all(row["prompt_tokens"] <= LENGTH and 0 <= row["score"] <= 1 and row["kl"] >= 0 for row in rows)
    assert all(row["budget_tokens"] == BUDGET for row in rows if row["policy"] != FULL)

    page, figures = tmp_path / "page.html", tmp_path / "figures"
    assert (
        main(["report", str(out), "--html", str(page), "--figures", str(figures), "--markdown", str(tmp_path / "r.md")])
        == 0
    )
    text = page.read_text()
    assert all(task in text for part in SUITES["paper"] for task in part.tasks)
    assert text.count("<img") == len(list(figures.glob("*.svg"))) > 3
