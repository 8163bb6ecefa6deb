"""`asl-gguf compare` on a tiny model: answers from one recorded pass are those of real runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import Llama
from asl_gguf.budget import late
from asl_gguf.cli import main
from asl_gguf.engine import replay
from asl_gguf.inspect import comparison
from asl_gguf.policies import ScoringPolicy, parse_policy
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from prefills import ON_ANY_MODEL
from tiny_llama import SETTLES_WRITTEN as SETTLES
from tiny_llama import TEXT

POLICIES = [
    "none",
    SETTLES,
    "asl",
    SETTLES.replace("asl-span", "asl-two-pass"),
    "fastkv:tsp_layer=2:cache_k=all",
    "gemfilter",
    "snapkv:window=16",
    "pyramidinfer:min_context=12",
    "streaming_llm",
]
QUESTION = "What did the keeper write on day 4?"
FULL_TEXT = f"{TEXT}\n\n{QUESTION}"
N_ANSWER = 8


@pytest.fixture
def model(tiny_model) -> str:
    return str(tiny_model("llama"))


@pytest.fixture
def run(model, tmp_path, capsys):
    """`run(*arguments)`: exit code, stdout and stderr of `asl-gguf compare -m MODEL --file ... --question ...`."""
    document = tmp_path / "document.txt"
    document.write_text(TEXT, encoding="utf-8")
    fixed = ["compare", "-m", model, "-t", "1", "-n", N_ANSWER]

    def run(*arguments: object) -> tuple[int, str, str]:
        source = [] if "-p" in arguments else ["-f", document, "-q", QUESTION]
        code = main([*map(str, [*fixed, *source]), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def run_json(run: Any, *arguments: object) -> dict[str, Any]:
    code, out, err = run("--json", *arguments)
    assert (code, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)


def real(model: str, policy: str, budget: float | int, *, raw: bool = False) -> tuple[str, Any]:
    """The answer and the report of a `Llama` of its own."""
    options = {"n_threads": 1, "n_threads_batch": 1, "asl_budget": budget, "asl_policy": parse_policy(policy)}
    llm = Llama(model, n_ctx=1024, **options)
    if raw:
        text = llm.create_completion(FULL_TEXT, max_tokens=N_ANSWER, temperature=0.0)["choices"][0]["text"]
    else:
        messages: Any = [{"role": "user", "content": FULL_TEXT}]
        result: Any = llm.create_chat_completion(messages, max_tokens=N_ANSWER, temperature=0.0)
        text = result["choices"][0]["message"]["content"]
    llm.close()
    return text, llm.last_prefill


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--raw", "--dequant", "off"]], ids=" ".join)
def test_replayed_answers_are_those_of_real_runs(run, model, monkeypatch, options):
    passes = []

    def counted(call):
        return lambda *arguments, **options: passes.append(1) or call(*arguments, **options)

    for name in ("record", "rescored"):  # a full pass, and what other windows add to it
        monkeypatch.setattr(replay, name, counted(getattr(replay, name)))
    found = run_json(run, "--policies", ",".join(POLICIES), "-b", "0.2", *options)
    scoring = [policy for policy in map(parse_policy, POLICIES) if isinstance(policy, ScoringPolicy)]
    kinds = {(32, None), *((policy.window, policy.half_life) for policy in scoring)}  # "none", the first, takes 32
    assert len(passes) == len(kinds) and (found["measured"], found["budget"]) == (False, 0.2)
    assert [answer["policy"] for answer in found["answers"]] == POLICIES
    assert len({answer["text"] for answer in found["answers"]}) > 3
    for answer in found["answers"]:
        text, report = real(model, answer["policy"], 0.2, raw="--raw" in options)
        assert answer["text"] == text
        for name in ("prompt_tokens", "kept_tokens", "selection_layer", "n_layer", "attention_mass", "pruned"):
            assert answer[name] == getattr(report, name), (answer["policy"], name)
        assert answer["prefill_seconds"] is None and answer["prefill_share"] == (report.prefill_share or 1.0)
        assert 0 < answer["kv_bytes_prompt"] == report.kv_bytes_prompt <= answer["kv_bytes_prompt_full"]


def test_layers_hold_as_many_rows_before_tokens_are_selected_as_in_a_llama(run, model, monkeypatch):
    """Whatever room the answer takes, and however many cells the replay has."""
    thresholds = late.Thresholds(2, 3, document=2, found=(2, 3), chained=(2, 3), summary=(2, 3))
    monkeypatch.setitem(late.CALIBRATED, (6, 2, 128), thresholds)
    answers = [run_json(run, "--policies", SETTLES, "-b", 200, *more)["answers"][0] for more in ([], ["--measure"])]
    text, report = real(model, SETTLES, 200)
    assert report.selection_layer == thresholds.deeper
    for answer in answers:
        assert (answer["text"], answer["attention_mass"]) == (text, report.attention_mass)


def test_measured_answers_are_the_same(run):
    arguments = ("--policies", f"none,{SETTLES},gemfilter", "-b", "100")
    replayed, measured = run_json(run, *arguments), run_json(run, *arguments, "--measure")
    assert measured["measured"]
    for ours, theirs in zip(replayed["answers"], measured["answers"], strict=True):
        assert theirs.pop("prefill_seconds") > 0 and ours.pop("prefill_seconds") is None
        assert theirs.pop("decode_tokens_per_second") and ours.pop("decode_tokens_per_second")
        assert ours == theirs


def test_prompts_whose_record_is_too_large(run, monkeypatch):
    """Of 128K tokens, hidden states of all layers take tens of GiB: each policy runs by itself."""
    arguments = ("--policies", f"none,{SETTLES},snapkv", "-b", "100")
    recorded = run_json(run, *arguments)
    monkeypatch.setattr(comparison, "RECORD_BYTES", 0)
    monkeypatch.setattr(replay, "record", None)
    alone = run_json(run, *arguments)
    for answer in (*recorded["answers"], *alone["answers"]):
        assert answer.pop("decode_tokens_per_second")
    assert recorded == alone


def test_table(run):
    code, out, err = run("--policies", f"none,{SETTLES},streaming_llm")
    lines = out.splitlines()
    assert (code, err) == (0, "") and re.match(r"policy +\| selection layer \| kept tokens +\| prefill \| ", lines[0])
    assert re.fullmatch(r"[-+]+", lines[1])
    rows = [[cell.strip() for cell in line.split("|")][:6] for line in lines if re.match("none|asl|stream", line)]
    assert [row[0] for row in rows] == ["none", SETTLES, "streaming_llm"]
    n_tokens = rows[0][2].split()[-1]
    assert rows[0][1:4] == ["-", f"{n_tokens} of {n_tokens}", "100%"]
    assert rows[1][1].endswith(" of 6") and int(rows[1][3].rstrip("%")) < 100 and 0 < float(rows[1][5]) <= 1
    assert rows[2][5] == "-" and "--measure for seconds" in lines[-1]
    code, out, _ = run("--policies", "streaming_llm", "--measure")
    assert re.search(r"\| 100%, \d+\.\d\d s \|", out) and "--measure" not in out


def test_every_policy_by_default(run):
    found = run_json(run)
    assert sorted(answer["policy"] for answer in found["answers"]) == sorted(ON_ANY_MODEL)
    assert found["answers"][0]["policy"] == "none"


def test_a_prompt_that_fits_the_budget(run):
    """Nothing is pruned, and the table says why."""
    code, out, _ = run("--policies", "none,snapkv", "-p", "Short.")
    assert code == 0 and "snapkv: the prompt fits the budget" in out and "none: the prompt" not in out


def test_a_model_that_cannot_be_pruned(run, tiny_model, recwarn):
    found = run_json(run, "-m", tiny_model("mamba"), "--policies", "none,snapkv")
    texts = [answer["text"] for answer in found["answers"]]
    assert texts[0] == texts[1] and not any(answer["pruned"] for answer in found["answers"])
    assert all("recurrent" in answer["reason"] for answer in found["answers"])
    assert any("not pruning" in str(warning.message) for warning in recwarn)


WRONG_USE = {
    "policy": (["--policies", "none,x"], "expected one of asl-span, .*, got 'x'"),
    "no-policy": (["--policies", ""], "expected one of asl-span, .*, got ''"),
    "parameter": (["--policies", "snapkv:window=0"], "window: expected .*, got 0"),
    "budget-none": (["-b", "none"], "--budget: expected .*, got none .*"),
    "budget": (["-b", "0"], "expected .*, got 0"),
    "budget-small": (["-b", "1"], "expected at least 17 tokens .*, got 1; .*"),
    "file": (["-f", "missing.txt"], "expected readable UTF-8 text, got missing.txt: .*"),
    "max-tokens": (["-n", "0"], "--max-tokens: expected at least 1, got 0"),
}


@pytest.mark.parametrize("arguments, message", WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use(run, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and re.fullmatch(f"asl-gguf: .*{message}\n", err), err
