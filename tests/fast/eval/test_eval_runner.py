"""`asl-gguf eval`: results that resume, one full pass that serves all policies, tables of what was found."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.budget import late
from asl_gguf.budget.share import round_cells
from asl_gguf.cli import main
from asl_gguf.engine.prefill import prefill
from asl_gguf.errors import OptionError
from asl_gguf.eval import measure, runner
from asl_gguf.eval.results import TIMES
from asl_gguf.eval.runner import FULL, Plan, Results, key_of, read_rows, run
from asl_gguf.eval.summary import document, relative_score, table
from asl_gguf.eval.tasks import make_task
from asl_gguf.native.context import model_shape
from asl_gguf.native.model import ContextOptions, Model
from asl_gguf.policies import parse_policy

POLICIES = ("asl-span:min_layer=3:obs_layers=2:tau=2:window=8", "gemfilter:window=8", "snapkv:window=8")
PLAN = Plan(("passkey", "multivalue"), (480,), (0.2, 100), POLICIES, samples=2, seed=0)
N_ANSWERS = 2 * 2 * (1 + 3 * 2)


@pytest.fixture(scope="module")
def model(tiny_model):
    model = Model(str(tiny_model("llama")), ContextOptions(n_threads=1))
    yield model
    model.close()


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module", name="folder")
def run_once(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(model, PLAN, Results(folder))
    return folder


@pytest.fixture
def uninterrupted(folder) -> list[dict[str, Any]]:
    return read_rows(folder / "results.jsonl")


@pytest.mark.long
def test_killed_and_resumed_equals_uninterrupted(model, tmp_path, uninterrupted, monkeypatch):
    """Killed again and again in the middle of a line, until it has come through."""
    assert len(uninterrupted) == N_ANSWERS == len({key_of(row) for row in uninterrupted})
    folder = tmp_path / "killed"
    n_kills = 0
    while True:
        results = Results(folder)
        n_left = 7

        def add(row: dict[str, Any], results: Results = results) -> None:
            nonlocal n_left
            if not n_left:
                with results._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row)[:37])
                raise KeyboardInterrupt
            n_left -= 1
            Results.add(results, row)

        monkeypatch.setattr(results, "add", add)
        try:
            run(model, PLAN, results)
            break
        except KeyboardInterrupt:
            n_kills += 1
    assert n_kills == N_ANSWERS // 7 - (N_ANSWERS % 7 == 0)
    assert without_times(read_rows(folder / "results.jsonl")) == without_times(uninterrupted)


@pytest.mark.long
def test_cut_at_any_byte(folder, tmp_path):
    """Whatever a kill leaves of the file, its whole lines are there, once each, and the next line starts afresh."""
    data = (folder / "results.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    last = json.loads(data[ends[-2] :])
    for cut in {*range(0, len(data), 97), *ends, *(end - 1 for end in ends)}:
        path = tmp_path / str(cut)
        path.mkdir()
        (path / "results.jsonl").write_bytes(data[:cut])
        results = Results(path)
        n_whole = sum(end <= cut for end in ends)
        assert len(results.rows) == n_whole
        results.add(last)
        assert read_rows(path / "results.jsonl") == [*uncut(data)[:n_whole], last]


def uncut(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.long
def test_a_process_killed_between_and_within_answers(tiny_model, model, tmp_path, uninterrupted):
    """SIGKILL some time after some lines are there, again and again: the results are those of one run."""
    program = (
        "import sys\nfrom asl_gguf.native.model import ContextOptions, Model\n"
        "from asl_gguf.eval.runner import Plan, Results, run\nfrom pathlib import Path\n"
        f"run(Model({str(tiny_model('llama'))!r}, ContextOptions(n_threads=1)), {PLAN!r}, Results(Path(sys.argv[1])))\n"
    )
    path = tmp_path / "results.jsonl"
    n_kills, delays = 0, random.Random(1)
    while len(read_rows(path)) < N_ANSWERS:
        n_wanted = len(read_rows(path)) + 5
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        while process.poll() is None and len(read_rows(path)) < n_wanted:
            time.sleep(0.01)
        time.sleep(0.3 * delays.random())  # wherever the next answers are then
        n_kills += process.poll() is None
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
    run(model, PLAN, Results(tmp_path))  # what was cut off after the last whole line goes
    assert n_kills >= 2
    assert without_times(read_rows(path)) == without_times(uninterrupted)


def test_nothing_is_run_twice(model, folder, uninterrupted, monkeypatch):
    monkeypatch.setattr(runner, "prefill", lambda *_: pytest.fail("an answer was computed again"))
    run(model, PLAN, Results(folder))
    assert read_rows(folder / "results.jsonl") == uninterrupted


def test_shared_pass_equals_prefills_of_their_own(model, uninterrupted):
    """Score, likelihood, completion, selection layer and attention mass of each answer."""
    for row in uninterrupted:
        if row["policy"] == FULL or row["index"]:
            continue
        task = make_task(row["task"], lambda text: len(model.tokenize(text)), row["length"], 2, 0)
        example = task.get_example(row["index"])
        tokens = model.tokenize(example.prompt)
        n_kept = row["budget_tokens"]
        n_cells = round_cells(len(tokens) + 256)
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, "auto") as session:
            report = prefill(session, tokens, parse_policy(row["policy"]), n_kept)
            alone = measure.measure(model, ctx, len(tokens), task, example)
        assert (alone.score, alone.nll, alone.completion) == (row["score"], row["nll"], row["completion"])
        assert report.selection_layer == row["selection_layer"]
        assert report.attention_mass == row["attention_mass"]


def test_a_line_that_is_no_result_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"task": \n{}\n')
    with pytest.raises(OptionError, match="expected one JSON result per line in"):
        read_rows(path)


def test_a_cut_off_line_is_left_out_and_removed_only_for_writing(tmp_path):
    path = tmp_path / "results.jsonl"
    whole, found = json.dumps(row("asl", 0.2, 0.5)).encode() + b"\n", [row("asl", 0.2, 0.5)]
    path.write_bytes(whole + b'{"a"')
    assert read_rows(path) == found and path.read_bytes() == whole + b'{"a"'
    assert read_rows(path, repair=True) == found and path.read_bytes() == whole


def row(policy: str, budget: float | None, score: float, index: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "task": "passkey",
        "length": 100,
        "index": index,
        "seed": 0,
        "policy": policy,
        "budget": budget,
        "score": score,
        "nll": 1.0,
        "selection_layer": None if policy == FULL else 4 + index,
        "prefill_share": 0.5,
        "kv_share": 0.25,
        "model": "m.gguf",
    } | values


ROWS = [row(FULL, None, 1.0), row(FULL, None, 0.5, 1), row("asl", 0.2, 0.5), row("asl", 0.2, 0.25, 1)]


def test_table():
    lines = table(ROWS, 100).splitlines()
    assert lines[0].startswith("100 tokens, 2 examples a task.")
    assert lines[-2:] == [
        "| none |  | 0.75 | 0.750 | 1.000 | 1.00 | - | 0.50 | 0.25 |",
        "| asl | 0.2 | 0.38 | 0.375 | 0.500 | 1.00 | 4 | 0.50 | 0.25 |",
    ]


def test_scores_are_relative_to_the_same_examples():
    assert relative_score(ROWS[2:3], ROWS[:1]) == 0.5
    assert relative_score(ROWS[2:], [row(FULL, None, 0.0)]) is None
    # an answer of the second example is missing: the full cache's counts for the first one alone
    assert table(ROWS[:3], 100).splitlines()[-1].startswith("| asl | 0.2 | 0.50 | 0.500 | 0.500 |")


def test_document_names_its_source():
    text = document(ROWS)
    assert "--tasks passkey --lengths 100 --seed 0" in text and "m.gguf" in text


@pytest.fixture
def command(tiny_model, tmp_path, capsys):
    """`command(*arguments)`: exit code, stdout and stderr of `asl-gguf eval` with two answers."""

    def command(*arguments: str) -> tuple[int, str, str]:
        fixed = ["eval", "-m", str(tiny_model("llama")), "-t", "1", "--out", str(tmp_path / "out"), "--samples", "1"]
        small = ["--tasks", "passkey", "--lengths", "700", "--budgets", "0.2", "--policies", "streaming_llm"]
        code = main([*fixed, *small, *arguments])
        return code, *capsys.readouterr()

    return command


def test_eval_and_report(command, tmp_path, capsys):
    code, out, err = command()
    assert code == 0 and out == "" and "2 answers took" in err
    assert main(["report", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    assert report.startswith("# Answers under pruning") and "| streaming_llm | 0.2 |" in report


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "chess"], "expected a task among niah_noise"),
        (["--policies", "magic"], "magic"),
        (["--policies", "snapkv:colour=3"], "policy snapkv: expected parameter=value with one of"),
        (["--lengths", "many"], "--lengths: expected numbers with commas, got 'many'"),
        (["--budgets", "0"], "budget"),
    ],
)
def test_bad_arguments(command, arguments, message, tmp_path):
    code, out, err = command(*arguments)
    assert code != 0 and out == "" and message in err


def test_a_length_that_one_task_cannot_have_is_refused_before_any_work(command, tmp_path):
    code, _, err = command("--tasks", "passkey,cwe", "--lengths", "400")
    assert code == 2 and "expected n_tokens to hold at least the prompt of cwe" in err
    assert read_rows(tmp_path / "out" / "results.jsonl") == []


def test_a_text_of_ones_own(command, tmp_path, capsys):
    """Divergence, agreement and perplexity, by the command, to the table."""
    text = tmp_path / "story.txt"
    text.write_text(" ".join(f"Word {i} of a story." for i in range(900)), encoding="utf-8")
    code, _, err = command("--tasks", f"text:{text}", "--lengths", "500")
    assert code == 0 and "2 answers took" in err
    full, pruned = read_rows(tmp_path / "out" / "results.jsonl")
    assert pruned["kl"] > full["kl"] == 0 and pruned["top1_agreement"] <= full["top1_agreement"] == 1
    assert main(["report", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| streaming_llm |")]
    assert lines[0].endswith(f"| {math.exp(pruned['nll']):.2f} |")


def test_report_without_results_is_an_error(tmp_path, capsys):
    assert main(["report", str(Path(tmp_path))]) != 0
    assert "expected results of asl-gguf eval in" in capsys.readouterr().err


@pytest.mark.parametrize("record_bytes", [2**30, 0], ids=["shared", "alone"])
def test_a_budget_that_follows_the_question(model, tmp_path, monkeypatch, record_bytes):
    """What it chooses is kept as if it had been the budget; figures and tables take its name."""
    shape = model_shape(model.handle)
    for need, kept in ((0, 0.2), (1, 0.4)):
        thresholds = late.Thresholds(2, 3, 2.0, (-2, -1), (2, 3), (1.5, 2) if need else (-2, -1))
        monkeypatch.setitem(late.CALIBRATED, shape, thresholds)
        folder = tmp_path / str(need)
        policy = "asl:min_layer=3:obs_layers=2:obs_tokens=16:tau=2:window=8"
        plan = Plan(("passkey",), (700,), ("auto:0.2-0.4", kept), (policy,), samples=1, seed=0)
        run(model, plan, Results(folder), record_bytes=record_bytes)
        _, chosen, fixed = without_times(read_rows(folder / "results.jsonl"))
        assert chosen.pop("budget") == "auto:0.2-0.4" and fixed.pop("budget") == kept
        assert f"{chosen['budget_tokens']} tokens: " in chosen.pop("choice") and fixed.pop("choice") is None
        assert abs(chosen["budget_tokens"] - fixed["budget_tokens"]) <= 1
        if chosen["budget_tokens"] == fixed["budget_tokens"]:
            assert chosen == fixed
        assert "| auto:0.2-0.4 |" in document(read_rows(folder / "results.jsonl"), "Title")


def test_auto_is_for_the_policies_that_take_it(model, tmp_path):
    plan = Plan(("passkey",), (700,), ("auto", 0.2), ("snapkv:window=8", "asl:window=8:min_layer=3:obs_layers=2"), 1, 0)
    run(model, plan, Results(tmp_path))
    found = [(row["policy"][:4], row["budget"]) for row in read_rows(tmp_path / "results.jsonl")]
    assert found == [("none", None), ("snap", 0.2), ("asl:", "auto"), ("asl:", 0.2)]


def test_a_policy_that_does_not_decide_late_is_refused(model, tmp_path):
    with pytest.raises(OptionError, match="decides at its selection layer for auto, .* got snapkv"):
        run(model, Plan(("passkey",), (700,), ("auto",), ("snapkv:window=8",), 1, 0), Results(tmp_path))
