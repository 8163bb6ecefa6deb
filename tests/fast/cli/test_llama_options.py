"""Options of llama.cpp's programs have their effect, or a line says that they have none."""

from __future__ import annotations

import json
import re

import pytest

from asl_gguf.cli import main
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_adapter import write_adapter
from tiny_llama import TEXT

SAMPLED = ("--temp", "1.5", "-s", "3")


@pytest.fixture
def run(tiny_model, capsys):
    """`run(*arguments)`: exit code, the answer or None, and stderr, with the full cache."""

    def run(*arguments: object):
        model = str(tiny_model("llama"))
        arguments = ("run", "-m", model, "-p", TEXT, "-n", "9", "-t", "1", "--json", "-b", "none", *arguments)
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, json.loads(out)["text"] if out else None, err

    return run


@pytest.mark.parametrize("option", ["--rope-freq-base 10", "--rope-freq-scale 0.1"])
def test_rotary_positions(run, option):
    assert run(*option.split())[1] != run()[1]


def test_an_adapter(run, tmp_path):
    adapter = write_adapter(tmp_path / "adapter.gguf")
    code, text, err = run("--lora", adapter)
    assert (code, err) == (0, "") and text != run()[1]
    code, _, err = run("--lora", adapter, "--lora", adapter)
    assert code == 2 and err.startswith("asl-gguf: --lora: expected one adapter, got 2: ")


@pytest.mark.parametrize(
    "option", ["--mirostat 1 --mirostat-ent 0.01", "--mirostat 2 --mirostat-ent 0.01", "--typical 0.01"]
)
def test_samplers_that_few_use(run, option):
    code, text, err = run(*SAMPLED, *option.split())
    assert (code, err) == (0, "") and text != run(*SAMPLED)[1]


@pytest.mark.parametrize(
    "option, why",
    [
        (
            "--mirostat-lr 0.2 --mirostat-ent 3",
            "--mirostat-lr, --mirostat-ent: without effect without --mirostat 1 or 2",
        ),
        ("--mirostat 0 --mirostat-lr 0.2", "--mirostat-lr: without effect without --mirostat 1 or 2"),
        ("--mirostat 2 --top-k 3 --typical 0.5", "--top-k, --typical: without effect beside --mirostat, .*"),
        (
            "--protect system --guard 0.5 --policy snapkv --decode-ctx 900",
            "--policy, --protect, --guard, --decode-ctx: .* none, .*",
        ),
        ("--color", "--color: without effect, nothing is coloured here"),
        ("-mg 1 -ts 3,1", "-mg, -ts: no GPU is there .*"),
    ],
)
def test_what_has_no_effect_is_said(run, option, why):
    code, _, err = run(*SAMPLED, *option.split())
    assert code == 0 and re.fullmatch(f"asl-gguf: warning: {why}\n", err), err


@pytest.mark.parametrize(
    "option",
    [
        "--batch-size 0", "--threads-batch 600", "--rope-freq-base -5", "--rope-freq-scale nan", "--main-gpu -1", "--typical 7",
        "--mirostat-lr -1", "--mirostat-ent nan",
    ],
)  # fmt: skip
def test_out_of_their_domain(run, option):
    code, text, err = run(*SAMPLED, *option.split())
    assert code == 2 and text is None and re.match(f"asl-gguf: {option.split()[0]}: expected .*, got ", err), err


@pytest.mark.parametrize("option", ["--system-prompt", "--reverse-prompt", "--grammar", "--json-schema"])
def test_texts_that_are_no_utf8(run, option):
    code, text, err = run(option, "\udcff")
    assert code == 2 and text is None and err.startswith(f"asl-gguf: expected readable UTF-8 text, got {option}: ")


def test_an_answer_ends_with_a_text(run):
    assert run("-r", "")[::2] == (
        2,
        "asl-gguf: --reverse-prompt: expected a text that ends the answer, got an empty one, which every answer has\n",
    )


def test_the_last_of_two_that_differ_holds(run, monkeypatch):
    import asl_gguf

    seen = []
    monkeypatch.setattr(asl_gguf, "Llama", lambda *_, **options: seen.append(options.get("use_mmap")) or 1 / 0)
    for options in ("--mmap --no-mmap", "--no-mmap --mmap"):
        with pytest.raises(ZeroDivisionError):
            run(*options.split())
    assert seen == [False, None]


def test_one_model(run):
    code, _, err = run("-hf", "user/repo")
    assert code == 2 and err.startswith("asl-gguf: --hf-repo: expected no -m beside it, got -m ")


def test_what_belongs_to_the_demo(tiny_model, capsys, tmp_path):
    arguments = ["inspect", "-m", str(tiny_model("llama")), "-p", TEXT, "-t", "1", "-o", str(tmp_path / "kept.html")]
    assert main([*arguments, "--n-predict", "2", "--tokens", "300", "--demo-seed", "0"]) == 0
    assert capsys.readouterr().err == "asl-gguf: warning: --tokens, --demo-seed: without effect without --demo\n"


def test_colours_take_no_document(run, capsys):
    with pytest.raises(SystemExit):
        run("--color", "-")
    assert "--color: expected one of on, off, auto, got '-'" in capsys.readouterr().err


def test_options_in_front_of_the_command(capsys):
    for given in ("-m", "--temp=1", "-", "--file"):
        with pytest.raises(SystemExit) as err:
            main([given, "run", "-p", "hi"])
        assert err.value.code == 2
        assert f"expected a command in front of its options, got {given!r} first" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, hint", [("chat -st", "run answers once"), ("chat -p hi", "run -p answers a prompt"),
    ("chat -no-cnv", "run --raw"), ("run --keep 9", "--protect BEGIN:END")])  # fmt: skip
def test_what_another_command_has(capsys, arguments, hint):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert hint in capsys.readouterr().err


def test_replays_have_what_prefills_have(tiny_model, tmp_path, capsys):
    """`compare` answers from one recorded pass as each policy's own prefill does, with an adapter and other positions too."""
    adapter = write_adapter(tmp_path / "adapter.gguf")
    arguments = f"compare -m {tiny_model('llama')} -n 9 -t 1 --json --policies none,gemfilter --dequant off".split()
    found = []
    for options in ("", f"--lora {adapter}", "--rope-freq-scale 0.1"):
        texts = []
        for measure in ([], ["--measure"]):
            assert main([*arguments, "-p", TEXT, *options.split(), *measure]) == 0
            texts.append([answer["text"] for answer in json.loads(capsys.readouterr().out)["answers"]])
        assert texts[0] == texts[1]
        found += texts[:1]
    assert found[0] != found[1] and found[0] != found[2]
