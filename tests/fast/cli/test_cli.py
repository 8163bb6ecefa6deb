"""The `asl-gguf` command on a tiny model: what it prints, where, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asl_gguf import __version__
from asl_gguf.cli import main
from asl_gguf.drop_in import progress
from asl_gguf.models import named
from chats import command, environment
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from patience import PATIENCE
from tiny_llama import TEXT

SUMMARY = r"kept \d+ of \d+ tokens( at layer \d of 6)?; K/V [\d.]+ of [\d.]+ MiB; first token \d+\.\d+ s\n"
RUN_KEYS = {"text", "prompt_tokens", "completion_tokens", "decode_tokens_per_second", "report"}
REPORT_KEYS = {
    "kept_tokens",
    "selection_layer",
    "prefill_seconds",
    "kv_bytes",
    "kv_bytes_full",
    "attention_mass",
    "variance",
}
COMMANDS = [
    "inspect", "compare", "calibrate", "eval", "report", "demo", "run", "models", "models list", "models pull",
    "models path", "bench", "bench prefill", "bench decode", "bench memory", "bench saved", "bench turns",
    "bench agents", "bench slices", "bench host", "bench kernels", "chat", "doctor",
]  # fmt: skip


@pytest.fixture
def model(tiny_model) -> str:
    return str(tiny_model("llama"))


@pytest.fixture
def document(tmp_path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(model, capsys):
    """`run(*arguments)`: exit code, stdout and stderr of `asl-gguf run -m MODEL -n 6 -t 1 ...`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["run", "-m", model, "-n", "6", "-t", "1", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def run_json(run: Any, *arguments: object) -> dict[str, Any]:
    code, out, err = run("--json", *arguments)
    assert (code, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)


def test_sources_of_the_prompt(run, document, monkeypatch):
    answers = [run("-p", TEXT), run("-f", document)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    answers.append(run("-"))
    assert [answer[:2] for answer in answers] == [answers[0][:2]] * 3
    code, out, err = answers[0]
    assert code == 0 and len(out) > 1 and out.endswith("\n")
    assert re.fullmatch(SUMMARY, err), err


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "chat"])
def test_json(run, document, raw):
    """Under a policy whose parameters are settled: a text that ends within a character would have more tokens."""
    options = ["-f", document, "-b", "0.2", "--policy", "asl", *(["--raw"] if raw else [])]
    found = run_json(run, *options)
    assert set(found) == RUN_KEYS and REPORT_KEYS <= set(found["report"])
    report = found["report"]
    assert report["prompt_tokens"] == found["prompt_tokens"] > 256
    assert report["kept_tokens"] == found["prompt_tokens"] // 5
    assert found["completion_tokens"] == 6 and found["decode_tokens_per_second"] > 0
    assert 0 < report["kv_bytes_prompt"] < report["kv_bytes_prompt_full"] and 0 < report["attention_mass"] <= 1
    assert report["kv_bytes"] <= report["kv_bytes_full"]  # with the room for an answer, of a short prompt all of it
    assert report["prefill_seconds"] > 0 and len(report["variance"][0]) == 3 and report["pruned"]
    _, out, _ = run(*options)
    assert out == found["text"] + "\n"


def test_the_chat_template_adds_tokens(run):
    chat, raw = (run_json(run, "-p", "hello", *options)["prompt_tokens"] for options in ([], ["--raw"]))
    assert chat > raw + 4


def test_budget_and_policy(run, document):
    reports = {
        options: run_json(run, "-f", document, *options)["report"]
        for options in [
            ("-b", "0.5"),
            ("-b", "120"),
            ("-b", "none"),
            ("-b", "1.0"),
            ("--policy", "snapkv"),
            ("--policy", "none"),
            ("-fa", "-b", "0.2"),
            (),
        ]
    }
    n_tokens = reports["-b", "none"]["prompt_tokens"]
    kept = {" ".join(options): report["kept_tokens"] for options, report in reports.items()}
    share = n_tokens // 5
    careful = n_tokens * 2 // 5  # the upper limit of `auto`, for a model without thresholds
    expected = [n_tokens // 2, 120, n_tokens, n_tokens, share, n_tokens, share, careful]
    assert list(kept.values()) == expected, kept
    assert reports[()]["budget_choice"].startswith("auto: ")
    assert reports["--policy", "snapkv"]["policy"] == "snapkv"
    assert reports["-b", "none"]["reason"] and not reports["-b", "none"]["pruned"]


def test_a_seed_repeats_a_sampled_answer(run):
    answers = [run("-p", TEXT, "--temp", "1.5", "-s", seed)[1] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_model_that_cannot_be_pruned(tiny_model, capsys, recwarn):
    assert main(["run", "-m", str(tiny_model("mamba")), "-p", TEXT, "-n", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert "recurrent" in report["reason"] and report["kept_tokens"] == report["prompt_tokens"]
    assert any("not pruning" in str(warning.message) for warning in recwarn)


WRONG_USE = {
    "budget-text": (["-p", TEXT, "--budget", "x"], "expected .*, got 'x'"),
    "budget-zero": (["-p", TEXT, "--budget", "0"], "expected .*, got 0"),
    "budget-negative": (["-p", TEXT, "--budget", "-1"], "expected .*, got -1"),
    "budget-large": (["-p", TEXT, "--budget", "1.5"], "expected .*, got 1.5"),
    "budget-nan": (["-p", TEXT, "--budget", "nan"], "expected .*, got nan"),
    "budget-small": (["-p", TEXT, "--budget", "1"], "expected at least 17 tokens.*, got 1"),
    "policy": (["-p", TEXT, "--policy", "x"], "expected one of asl-span, asl, .*, got 'x'"),
    "prompt-empty": (["-p", ""], "expected a prompt .*, got an empty one"),
    "prompt-blank": (["-p", " \n"], "expected a prompt .*, got an empty one"),
    "file-missing": (["-f", "missing.txt"], "expected readable UTF-8 text, got missing.txt"),
    "file-folder": (["-f", "."], r"expected readable UTF-8 text, got \."),
    "n-ctx-small": (["-p", TEXT * 9, "-c", "40"], "expected fewer than --ctx-size = 256 tokens"),
    "n-ctx-negative": (["-p", TEXT, "-c", "-5"], "expected .*, got -5"),
    "max-tokens": (["-p", TEXT, "-n", "0"], "max-tokens: expected .*, got 0"),
    "decode-ctx": (["-p", TEXT, "--decode-ctx", "0"], "expected .*, got 0"),
    "n-ubatch": (["-p", TEXT, "--n-ubatch", "0"], "n-ubatch: expected .*, got 0"),
    "nothing": ([], "expected a prompt .*, got none of them"),
    "question-alone": (["-q", "Who?"], "--question: expected together with --file, got it alone"),
    "question-twice": (["-f", "a", "-q", "Who?", "-p", "Who?"], "--question: expected -q or -p, got both"),
    "stdin-twice": (["-f", "-", "-"], "expected standard input .* once, got it twice"),
    "not-utf8": (["-p", "ab\udcffcd"], "expected .*UTF-8.*, got"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("arguments, message", WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"asl-gguf: .*{message}.*\n", err), err


def test_a_file_that_is_not_text(run, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    code, _, err = run("-f", path)
    assert code == 2 and err.count("\n") == 1 and "an image; run it through OCR" in err


def test_quantised_cache_needs_flash_attention(run):
    """llama.cpp has no quantised V without it: said in a line, or K alone is quantised; no traceback."""
    code, _, err = run("-p", TEXT, "--kv-type", "q8_0")
    assert code == 0 or (code in (1, 2) and err.count("\n") == 1 and "flash" in err)
    assert run("-p", TEXT, "--kv-type", "q8_0", "-fa")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [["run", "-p"], ["run", "-p", "a", "-n", "x"], ["fly"], ["bench"], ["run", "what is it"]],
    ids=str,
)
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as err:
        main(arguments)
    assert err.value.code == 2
    out, text = capsys.readouterr()
    assert out == "" and re.fullmatch("asl-gguf[a-z ]*: error: .*[;?] [Ss]ee asl-gguf[a-z ]* --help\n", text), text


def test_no_command_lists_them(capsys):
    assert main([]) == 2
    out, text = capsys.readouterr()
    assert out == "" and text.startswith("usage: asl-gguf") and all(f"    {name}" in text for name in ("run", "doctor"))


def test_a_slip_is_named(capsys, tmp_path):
    (tmp_path / "note.txt").write_text("A note.")
    for arguments, hint in (
        (["rnu"], "did you mean run[?]"),
        (["run", "what is it"], "-p, for a prompt"),
        (["run", str(tmp_path / "note.txt")], "-f, for a document"),
        (["run", "-p", "a", "-ctk", "q8-0"], "did you mean q8_0[?]"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert re.search(hint, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failures(run, document, tmp_path, capsys, model):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(model).read_bytes()[:3000])
    for arguments in (
        ["-m", "missing.gguf"],
        ["-m", broken],
        ["-m", broken, "-c", "512"],
        ["-m", document],
        ["--decode-ctx", "100", "-n", "300"],
    ):
        code, out, err = run("-f", document, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), (arguments, err)
        assert re.match("asl-gguf: expected .*, got ", err)


def test_ctrl_c(run, monkeypatch):
    def interrupt(self, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressBar, "__call__", interrupt)
    assert run("-p", TEXT) == (130, "", "asl-gguf: cancelled\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help(capsys, name):
    with pytest.raises(SystemExit) as err:
        main([*name.split(), "--help"])
    out, text = capsys.readouterr()
    assert err.value.code == 0 and text == "" and out.startswith(f"usage: asl-gguf {name}")
    assert ("none: full cache" in " ".join(out.split())) == (name in ("inspect", "demo", "run", "chat"))
    assert ("--runs RUNS" in out) == (name.startswith("bench ") and name not in ("bench memory", "bench kernels"))


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("arguments", [["models"], ["models", "list"]])
def test_models_list(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.setenv("ASL_GGUF_CACHE", str(tmp_path))
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    for name in named.named_models():
        assert name in out and f"[asl-gguf models pull {name}]" in out
    assert err == ""


def test_models_path(capsys, monkeypatch, tmp_path, model):
    assert main(["models", "path", model]) == 0
    assert capsys.readouterr().out == f"{model}\n"
    monkeypatch.setenv("ASL_GGUF_CACHE", str(tmp_path))
    for name in ("smollm2-135m-instruct", "nope"):
        assert main(["models", "path", name]) == 1
        out, err = capsys.readouterr()
        assert out == "" and name in err and err.count("\n") == 1
    assert main(["models", "pull", "nope"]) == 1


def test_doctor(capsys, monkeypatch, tmp_path):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    words = ("llama-cpp-python", "library", "asl ABI", "backend", "CPU", "model cache", "no problems found")
    for word in (__version__, *words):
        assert word in out, word


def test_doctor_finds_a_missing_library(tmp_path):
    done = subprocess.run(
        command("doctor"),
        env=environment() | {"LLAMA_CPP_LIB_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"problem: expected .*, found none. Unset LLAMA_CPP_LIB_PATH", done.stdout)


@pytest.mark.long
def test_the_command_itself(model, document):
    """In a process of its own: nothing of llama.cpp's log and no progress bar, where stderr is no terminal."""
    done = subprocess.run(
        command("run", "-m", model, "-f", document, "-n", 6, "--json"),
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert set(json.loads(done.stdout)) == RUN_KEYS
    done = subprocess.run(
        command("run", "-m", "missing.gguf", "-p", "a"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_bar_on_a_terminal(model, document):
    ours, theirs = os.openpty()
    arguments = command("run", "-m", model, "-f", document, "-n", 6)
    with subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            drawn += part
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0 and len(out) > 1
    assert re.search(rb"\rprefill \[#*\.*\] +\d+% +\d+ s left", drawn), drawn
    assert re.search(rb"\r\x1b\[2K" + SUMMARY.replace("\\n", "\\r\\n").encode() + rb"$", drawn), drawn
    assert b"[" not in out
