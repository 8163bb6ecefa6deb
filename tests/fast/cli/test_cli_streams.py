"""The command on streams that are closed, full, or of an encoding that lacks letters; and what else ends it in one line."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asl_gguf.cli import main, streams
from chats import command, environment
from patience import PATIENCE
from tiny_llama import TEXT

ROW = {
    "task": "passkey", "policy": "none", "model": "m.gguf", "length": 500, "index": 0, "seed": 0, "budget": None,
    "score": 1.0, "nll": 0.5, "selection_layer": None, "prefill_share": 1.0, "kv_share": 1.0,
}  # fmt: skip


@pytest.fixture
def encoded(monkeypatch):
    """`encoded(encoding)`: from now on standard output has it; its bytes."""

    def encoded(encoding: str) -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        return written

    return encoded


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "utf-16"])
def test_json_in_any_encoding(encoded, encoding):
    """Letters that the encoding lacks, and halves of surrogate pairs, come back from it."""
    value = {"text": "naïve – 雪 \U0001f600 \udc80"}
    written = encoded(encoding)
    streams.open_streams()
    streams.print_json(value)
    sys.stdout.flush()
    assert json.loads(written.getvalue().decode(encoding)) == value
    assert ("雪".encode(encoding) in written.getvalue()) if encoding == "utf-8" else True


@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["text", "json"])
def test_an_answer_in_ascii(model, encoded, tmp_path, json_too):
    """The bytes of a random model are no letters of it."""
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT, encoding="utf-8")
    written = encoded("ascii")
    arguments = ["run", "-m", model, "-t", "1", "-n", "8", "--raw", "-f", str(path), "-b", "0.5", *json_too]
    assert main(arguments) == 0
    text = written.getvalue().decode("ascii")
    assert not json_too or json.loads(text)["completion_tokens"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's redirections")
@pytest.mark.parametrize(
    "arguments, redirected, code, message",
    [
        (["doctor"], ">&-", 1, "expected a standard output to print to, got a closed one"),
        (["doctor"], ">/dev/full", 1, "No space left on device"),
        (["--help"], ">/dev/full", 1, "No space left on device"),
        (["run", "-"], "<&-", 2, "expected a text on standard input, got a closed one"),
        (["chat"], "<&-", 2, "expected a text on standard input, got a closed one"),
        (["run", "-p", "a", "-n", "0"], "2>&-", 2, ""),
        (["run", "-p", "a", "-n", "0"], "2>/dev/full", 2, ""),
    ],
    ids=str,
)
def test_streams_of_a_shell(arguments, redirected, code, message):
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    line = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command(*arguments)]
    stdin = None if "<" in redirected else subprocess.DEVNULL
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, stdin=stdin, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    if message:
        assert message in done.stderr and done.stderr.startswith("asl-gguf: ") and done.stderr.count("\n") == 1
    else:
        assert done.stderr == ""


LARGE = str(2**31)
NUMBERS = {
    "threads": (["run", "-p", TEXT, "-t", "513"], "--threads: expected at most 512, got 513"),
    "n-ubatch": (["run", "-p", TEXT, "--n-ubatch", LARGE], f"--n-ubatch: expected at most {2**31 - 1}, got {LARGE}"),
    "decode-ctx": (["run", "-p", TEXT, "--decode-ctx", "999999999999"], "--decode-ctx: expected at most"),
    "n-ctx": (["chat", "-c", LARGE], "--n-ctx: expected at most"),
    "gpu-layers": (["run", "-p", TEXT, "-ngl", LARGE], "--gpu-layers: expected at most"),
    "gpu-layers-negative": (["run", "-p", TEXT, "-ngl", "-2"], "--gpu-layers: expected at least -1, got -2"),
    "seed": (["run", "-p", TEXT, "-s", str(2**32)], "--seed: expected at most"),
    "temp": (["run", "-p", TEXT, "--temp", "nan"], "--temp: expected a number from 0 on, got nan"),
    "temp-negative": (["chat", "--temp", "-1"], "--temp: expected a number from 0 on, got -1.0"),
    "turns": (["bench", "turns", "--turns", "0"], "--turns: expected at least 1, got 0"),
    "turn-tokens": (["bench", "agents", "--turn-tokens", "0"], "--turn-tokens: expected at least 1, got 0"),
    "runs": (["bench", "prefill", "--runs", LARGE], "--runs: expected at most"),
    "record-gib": (["eval", "--out", "x", "--record-gib", "nan"], "--record-gib: expected a number of GiB from 0 on, got nan"),
    "record-gib-inf": (["eval", "--out", "x", "--record-gib", "inf"], "--record-gib: expected .*, got inf"),
    "both": (["calibrate", "--easy", "passkey", "--hard", "passkey,vt"], "expected each task as easy or as hard, got passkey"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", NUMBERS.values(), ids=NUMBERS)
def test_numbers_outside_their_range(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    where = 2 if arguments[0] == "bench" else 1
    assert main([*arguments[:where], "-m", model, *arguments[where:]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.match(f"asl-gguf: .*{message}", err)


@pytest.mark.parametrize("chunk", ["99999999", str(2**31 - 1)])
def test_chunks_that_memory_has_no_room_for(model, capsys, chunk):
    """Answered, where llama.cpp cuts chunks to the context; or said in one line."""
    code = main(["run", "-m", model, "-t", "1", "-n", "2", "-p", TEXT, "--n-ubatch", chunk])
    err = capsys.readouterr().err
    assert code == 0 or (code in (1, 2) and err.startswith("asl-gguf: expected ") and err.count("\n") == 1)


@pytest.mark.parametrize("out", ["file", "file/folder", "/proc/asl_gguf"])
def test_results_where_no_folder_can_be(model, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if out.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc")
    assert main(["eval", "-m", model, "--suite", "small", "--out", out]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"asl-gguf: --out: expected a folder that can be made and written, got {out}: ")
    assert err.count("\n") == 1


def test_a_disk_that_is_full(model, tmp_path, monkeypatch, capsys):
    """Whatever is written at the time: one line, and 1."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "page.html")

    (tmp_path / "prompt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", full)
    assert main(
        [
            "inspect",
            "-m",
            model,
            "-t",
            "1",
            "-n",
            "2",
            "--prompt-file",
            str(tmp_path / "prompt"),
            "-o",
            str(tmp_path / "page"),
        ]
    ) in (1, 2)
    err = capsys.readouterr().err
    assert "No space left on device" in err and err.startswith("asl-gguf: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "5", "null", "{}", '"text"', "[" * 100_000, "\\ud800", json.dumps(ROW | {"score": "right"}),
        json.dumps(ROW | {"score": None}), json.dumps(ROW | {"score": True}), json.dumps(ROW | {"length": "500"}),
        json.dumps(ROW | {"budget": "0.2"}), json.dumps(ROW | {"task": 3}), json.dumps(ROW | {"kv_bytes": []}),
    ],
    ids=lambda line: line[:12],
)  # fmt: skip
def test_results_that_are_none(tmp_path, capsys, line):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"asl-gguf: expected one JSON result per line in {path}, got in line 2: ")
    assert err.count("\n") == 1
    path.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
