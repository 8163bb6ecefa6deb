"""What is wrong with llama-server's arguments is said before anything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asl_gguf.cli import main
from asl_gguf.errors import OptionError
from asl_gguf.server import bindings
from asl_gguf.server.arguments import ServerOption, check, server_options

OPTIONS = {
    "--port": ServerOption(1, True), "--host": ServerOption(1, False), "--slots": ServerOption(0, False),
    "-m": ServerOption(1, False), "--lora-range": ServerOption(2, True),
}  # fmt: skip


@pytest.mark.parametrize(
    "given", ["", "--port 80 --slots", "--host -x -m --port", "--lora_range 1 -2", "--port -2147483648"]
)
def test_what_is_right(given):
    check(given.split(), OPTIONS)


@pytest.mark.parametrize(
    "given, said",
    [
        ("--bogus", "got the unknown --bogus; see asl-gguf serve --help"),
        ("--slots --prt 80", "got the unknown --prt; did you mean --port?"),
        ("--port=80", "got the unknown --port=80; write --port 80"),
        ("--slots=1", "got the unknown --slots=1; --slots takes no value"),
        ("--budget 0.2", "got the unknown --budget; did you mean --asl-budget?"),
        ("model.gguf", "in front of 'model.gguf', got none; -m names a model"),
        ("--slots --host", "--host: expected a value, got none"),
        ("--lora-range 1", "--lora-range: expected a value, got none"),
        ("--port x", "--port: expected a whole number, got 'x'"),
        ("--port ٣", "--port: expected a whole number, got '٣'"),
        ("--port 2147483648", "--port: expected a whole number of at most 2147483647, got '2147483648'"),
        ("--port " + "9" * 5000, "--port: expected a whole number of at most 2147483647, got '99"),
    ],
)
def test_what_is_wrong(given, said):
    with pytest.raises(OptionError) as err:
        check(given.split(), OPTIONS)
    assert said in str(err.value) and "expected" in str(err.value)


@pytest.mark.skipif(not bindings.library_path().exists(), reason="the server was not built (make serve)")
@pytest.mark.parametrize("given, code", [("--bogus", 2), ("--port x", 2), ("-m no-such-file.gguf", 1)])
def test_no_address_of_a_server_that_does_not_start(given, code, capsys):
    assert main(["serve", *given.split()]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("asl-gguf: ") and err.count("\n") == 1, err


@pytest.mark.skipif(not bindings.library_path().exists(), reason="the server was not built (make serve)")
@pytest.mark.parametrize("option", ["--version", "--list-devices"])
def test_no_address_where_no_server_starts(option):
    done = subprocess.run([sys.executable, "-m", "asl_gguf", "serve", option], capture_output=True, text=True)
    assert done.returncode == 0 and "/asl" not in done.stderr + done.stdout


@pytest.mark.skipif(not bindings.library_path().exists(), reason="the server was not built (make serve)")
def test_options_of_this_build():
    options = server_options()
    assert options["--port"] == ServerOption(1, True) and options["--no-slots"] == ServerOption(0, False)
    assert options["-m"] == ServerOption(1, False) and options["-h"].n_values == 0
    assert options["--control-vector-layer-range"].n_values == 2 and len(options) > 300
