"""Options that llama.cpp's programs have, and what is said where they cannot be."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest

from asl_gguf import DownloadError, ModelError
from asl_gguf.cli import main
from asl_gguf.cli.budgets import parse_budget
from asl_gguf.cli.options import KV_TYPES
from asl_gguf.models import hub
from asl_gguf.native import devices
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_llama import TEXT

QUANTISED = [name for name in KV_TYPES if name not in ("f32", "f16", "bf16")]


@pytest.fixture
def run(tiny_model, capsys):
    """`run(*arguments)`: exit code, the report or None, and stderr."""

    def run(*arguments: object):
        model = str(tiny_model("llama"))
        code = main(["run", "-m", model, "-p", TEXT, "-n", "4", "-t", "1", "--json", "-b", "0.2", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def test_the_types_are_those_of_ggml():
    from asl_gguf.drop_in.init_errors import _TYPES

    assert {name.upper() for name in KV_TYPES} == {_TYPES[kind] for kind in KV_TYPES.values()}
    assert all(_TYPES[kind] == name.upper() for name, kind in KV_TYPES.items())


@pytest.mark.parametrize("kind", KV_TYPES)
def test_cache_types(run, kind):
    code, found, err = run("-ctk", kind, "-ctv", kind, "-fa")
    assert (code, err) == (0, "") and found["report"]["pruned"]
    width = found["report"]["kv_bytes_prompt_full"] / run()[1]["report"]["kv_bytes_prompt_full"]
    bits = {
        "f32": 32,
        "f16": 16,
        "bf16": 16,
        "q8_0": 8.5,
        "q5_0": 5.5,
        "q5_1": 6,
        "q4_0": 4.5,
        "q4_1": 5,
        "iq4_nl": 4.5,
    }
    assert width == pytest.approx(bits[kind] / 16)


def test_v_is_quantised_with_flash_attention_alone(run):
    for kind in QUANTISED:
        code, _, err = run("-ctv", kind)
        assert (
            code == 2
            and err == f"asl-gguf: --cache-type-v: expected -fa with the quantised type {kind}, got none; add -fa\n"
        )
    assert run("-ctv", "bf16", "-ctk", "f32")[::2] == (0, "")


def test_heads_that_no_block_fills(tiny_model, capsys):
    model = str(tiny_model("llama", head_dim=16))
    for options, name in ((["-ctk", "q8_0", "-fa"], "--cache-type-k"), (["-ctv", "q4_1", "-fa"], "--cache-type-v")):
        assert main(["run", "-m", model, "-p", TEXT, "-n", "2", "-t", "1", *options]) == 2
        assert f"{name}: expected F32, F16 or BF16 for this model, whose heads of 16 values" in capsys.readouterr().err
    assert main(["run", "-m", model, "-p", TEXT, "-n", "2", "-t", "1", "-ctk", "bf16"]) == 0


def test_layers_without_a_gpu(run, monkeypatch):
    for value in ("99", "all"):
        code, _, err = run("-ngl", value)
        assert code == 0 and re.fullmatch("asl-gguf: warning: -ngl .*: no GPU is there .*\n", err)
    monkeypatch.setattr(devices, "offloads", lambda: True)
    assert run("--n-gpu-layers", 0)[::2] == run("-ngl", 1)[::2] == (0, "")


def test_names_of_llama_cpp(run):
    flags = [
        "--ctx-size",
        "600",
        "--n-predict",
        "3",
        "--temperature",
        "0",
        "--ubatch-size",
        "64",
        "--flash-attn",
        "off",
    ]
    code, found, err = run(*flags)
    assert (code, err, found["completion_tokens"]) == (0, "", 3)
    assert run("-c", "0")[0] == 0  # the model's training context


def test_samplers(run):
    base = ("--temp", "1.5", "-s", "3", "-b", "none")
    plain = run(*base)[1]["text"]
    assert run(*base)[1]["text"] == plain != run("--temp", "1.5", "-s", "4", "-b", "none")[1]["text"]
    greedy = run("-b", "none")[1]["text"]
    for only_the_likeliest in (["--top-k", 1], ["--top-p", 0.0], ["--min-p", 1.0]):
        assert run(*base, *only_the_likeliest)[1]["text"] == greedy, only_the_likeliest
    assert run("-b", "none", "--repeat-penalty", 1000)[1]["text"] != run("-b", "none", "-n", 9)[1]["text"]


@pytest.mark.parametrize("flag", ["--top-p 0.5", "--min-p 0.1", "--top-k 5", "--seed 1"])
def test_samplers_without_effect_are_announced(run, flag):
    code, _, err = run(*flag.split())
    assert code == 0 and err.startswith(f"asl-gguf: warning: {flag.split()[0]}: without effect at --temp 0")
    assert run(*flag.split(), "--temp", "0.8")[::2] == (0, "")


@pytest.mark.parametrize(
    "flag",
    ["--top-p 1.5", "--top-p -1", "--min-p 2", "--top-k -1", "--temp -1", "--temp nan", "--repeat-penalty 0", "-s -2"],
)
def test_samplers_out_of_their_domain(run, flag):
    code, _, err = run(*flag.split())
    assert code == 2 and re.fullmatch("asl-gguf: --[a-z-]+: expected (a number from|at least) .*, got .*\n", err), err


def test_parallel_is_refused(run):
    code, _, err = run("-np", "4")
    assert code == 2 and re.fullmatch("asl-gguf: --parallel: expected 1, got 4: .*server.*\n", err)
    assert run("-np", "1")[0] == 0


def test_protect_and_guard(run):
    code, found, err = run("--protect", "system", "--protect", "0:9", "--protect", "/day 4/", "-b", "0.5")
    n_words = run("--protect", "/day 4/")[1]["report"]["protected_tokens"]
    assert (code, err) == (0, "") and found["report"]["protected_tokens"] == 9 + n_words and 0 < n_words <= len("day 4")
    assert "protected tokens" in run("--protect", "question")[2]  # all of the prompt
    assert run("--protect", "0:9")[1]["report"]["protected_tokens"] == 9
    attempts = run("--guard", "1.0")[1]["report"]
    assert attempts["guard_attempts"] and attempts["kept_tokens"] > run()[1]["report"]["kept_tokens"]
    for what in ("answer", "/(/", "1:x", "//"):
        code, _, err = run("--protect", what)
        assert code == 2 and re.match("asl-gguf: --protect: expected ", err), err
    assert run("--guard", "2")[0] == 2


@pytest.mark.parametrize("text, value", [("20%", 0.2), ("0.2", 0.2), ("12.5%", 0.125), ("100%", 1.0), ("512", 512)])
def test_budgets(capsys, text, value):
    assert parse_budget(text) == value and capsys.readouterr().err == ""


def test_a_few_tokens_may_have_been_per_cent(capsys):
    assert parse_budget("20") == 20
    assert capsys.readouterr().err == (
        "asl-gguf: warning: --budget 20 keeps 20 tokens; for a share of the prompt pass 20% or 0.2\n"
    )


@pytest.mark.parametrize(
    "command, unknown, near",
    [
        ("run", "--tmep", "--temp"),
        ("run", "--tmep 1", "--temp"),
        ("run", "--budgte=0.1", "--budget"),
        ("chat", "--Seed", "--seed"),
        ("inspect", "--full_kv", "see asl-gguf inspect --help"),
        ("run", "--n_ctx", "--n-ctx"),
        ("run", "-temp", "--temp"),
        ("bench prefill", "--runz", "--runs"),
    ],
)
def test_unknown_options_name_the_nearest(capsys, command, unknown, near):
    with pytest.raises(SystemExit) as err:
        main([*command.split(), *unknown.split()])
    assert err.value.code == 2
    assert re.search(f"error: expected an option of asl-gguf {command}, got .*; .*{near}", capsys.readouterr().err)


def test_words_left_over(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "prefill", "what"])
    assert "got 'what'; quote texts" in capsys.readouterr().err


FILES = [
    "README.md", "m-F16.gguf", "m-IQ4_XS.gguf", "m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf",
    "mmproj-m-Q8_0.gguf",
]  # fmt: skip
PARTS = FILES[4:6]


@pytest.mark.parametrize(
    "files, quant, chosen",
    [
        (FILES, None, ["m-Q4_K_M.gguf"]),
        (FILES, "q8_0", PARTS),
        (FILES, "f16", ["m-F16.gguf"]),
        (FILES, "Q4_K", []),
        (FILES[:3], None, ["m-F16.gguf"]),
        (FILES[:1], None, []),
        (["a/m.Q5_0.gguf"], "Q5_0", ["a/m.Q5_0.gguf"]),
    ],
)
def test_choice_of_a_file(files, quant, chosen):
    assert hub.choose(files, quant) == chosen


class Hub(types.ModuleType):
    """Stands in for huggingface_hub: a repository of tiny models, which may be out of reach."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.reachable, self.fetched = folder, True, []

    def list_repo_files(self, repo: str) -> list[str]:
        if not self.reachable:
            raise ConnectionError("no network")
        if repo != "user/repo":
            raise FileNotFoundError("404: repository not found")
        return [path.name for path in self.folder.iterdir()]

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        self.fetched.append((repo_id, filename))
        return str(self.folder / filename)

    def snapshot_download(self, repo_id: str, local_files_only: bool) -> str:
        assert local_files_only
        if not self.fetched:
            raise FileNotFoundError("nothing is cached")
        return str(self.folder)


@pytest.fixture(name="hf")
def stand_in(tiny_model, tmp_path, monkeypatch) -> Hub:
    for name in ("m-Q4_K_M.gguf", "m-F16.gguf"):
        (tmp_path / name).write_bytes(tiny_model("llama").read_bytes())
    monkeypatch.setitem(sys.modules, "huggingface_hub", found := Hub(tmp_path))
    return found


def test_a_model_on_hugging_face(hf, capsys):
    arguments = ["run", "-p", TEXT, "-n", "3", "-t", "1", "-b", "0.2", "--json"]
    assert main([*arguments, "-hf", "user/repo:f16"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 3
    hf.reachable = False  # what was fetched serves
    assert main([*arguments, "-hf", "user/repo"]) == 0
    assert hf.fetched == [("user/repo", "m-F16.gguf"), ("user/repo", "m-Q4_K_M.gguf")]


def test_hugging_face_out_of_reach(hf, monkeypatch, capsys):
    with pytest.raises(ModelError, match="expected USER/REPO or USER/REPO:QUANT, got 'repo'"):
        hub.fetch("repo")
    with pytest.raises(ModelError, match="a GGUF file of Q2_K in user/repo, got m-F16.gguf, m-Q4_K_M.gguf; name one"):
        hub.fetch("user/repo:Q2_K")
    with pytest.raises(DownloadError, match="expected user/other on Hugging Face, got FileNotFoundError: 404.*-m"):
        hub.fetch("user/other")
    hf.reachable = False
    with pytest.raises(DownloadError, match="got ConnectionError: no network; check the name and the network"):
        hub.fetch("user/repo")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["run", "-p", "a", "-hf", "user/repo"]) == 1
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_what_llama_cpp_does_in_any_case_is_taken(run):
    flags = "--jinja --no-display-prompt --no-warmup --simple-io --no-perf --log-disable --no-context-shift --mmap -st -co off"
    code, found, err = run(*flags.split(), "-fa", "auto", "-tb", "1", "--batch-size", "64", "--no-mmap")
    assert (code, err) == (0, "") and found["report"]["pruned"]


def test_samplers_and_grammars_of_llama_cpp(run, tmp_path):
    plain = run("-b", "none", "-n", "9")[1]["text"]
    assert run("-b", "none", "-n", "9", "--presence-penalty", "-99", "--frequency-penalty", "-99")[1]["text"] != plain
    assert run("-b", "none", "-n", "9", "-r", plain[1])[1]["text"] == plain[: plain.index(plain[1])]
    (tmp_path / "answer.gbnf").write_text('root ::= "yes"')
    for grammar in (["--grammar", 'root ::= "yes"'], ["--grammar-file", str(tmp_path / "answer.gbnf")]):
        assert run("-b", "none", "-n", "9", *grammar)[1]["text"] == "yes"
    assert json.loads(run("-b", "none", "-n", "20", "-j", '{"const": 7}')[1]["text"]) == 7
    code, _, err = run("-j", "{}", "--grammar", 'root ::= "a"')
    assert code == 2 and err.startswith("asl-gguf: --grammar: expected alone, got it with --json-schema")
    for wrong in (["-j", "{"], ["--grammar", "(("]):
        code, found, err = run(*wrong)
        assert code == 2 and found is None and "grammar" in err, err
    sampled = ("--temp", "1.5", "-s", "3", "-b", "none")
    assert (
        run(*sampled, "--mirostat", "2")[1]["text"] != "" and "--mirostat: without effect" in run("--mirostat", "2")[2]
    )


def test_a_system_message(run):
    with_it, without = (run(*more, "-b", "none")[1]["prompt_tokens"] for more in (["-sys", "Be short."], []))
    assert with_it > without
    assert run("-sys", "Be short.", "--raw")[0] == 2


def test_an_answer_without_an_end(run):
    n_prompt = run("-b", "none")[1]["prompt_tokens"]
    code, found, err = run("-n", "-1", "-c", n_prompt + 40)
    assert (code, err) == (0, "") and 4 < found["completion_tokens"] <= 256 + 40  # contexts are rounded up
    assert run("-n", "-2")[0] == run("-n", "0")[0] == 2


@pytest.mark.parametrize(
    "name, hint",
    {
        "-cnv": "asl-gguf chat", "--port": "asl-gguf serve", "--prompt-cache": "save_prompt", "-md": "full cache",
        "--mmproj": "text", "-hff": "-hf USER/REPO:QUANT", "--keep": "--protect", "-mli": "see asl-gguf run --help",
        "--n_predict": "did you mean --n-predict[?]", "--slot": "see asl-gguf run --help", "-lv": "--report",
    }.items(),
)  # fmt: skip
def test_options_that_are_not_here(run, capsys, name, hint):
    with pytest.raises(SystemExit) as err:
        run(name, "4")
    text = capsys.readouterr().err
    assert err.value.code == 2 and f"got the unknown {name}" in text and re.search(hint, text) and text.count("\n") == 1


def test_a_batch_is_no_budget(run):
    assert re.fullmatch("asl-gguf: warning: -b 512 is a budget of 512 tokens; .*--batch-size.*\n", run("-b", "512")[2])
    assert run("--budget", "512")[2] == run("-b", "500")[2] == ""


@pytest.mark.parametrize(
    "text, meant",
    {"64MiB": "fit:64MiB", "5s": "ttft:5s", "0,2": "0.2", "20 percent": "20%", "half": None, "12parsecs": None}.items(),
)
def test_budgets_that_are_nearly_right(run, text, meant):
    code, _, err = run("--budget", text)
    assert code == 2 and (f"; did you mean {meant}?" in err) == (meant is not None) == ("did you mean" in err)
    assert parse_budget(meant or "20%") is not None


def test_shares_of_auto():
    assert parse_budget("auto:5%-40%") == "auto:5%-40%"


def test_errors_name_options_as_they_are_typed(run):
    assert run("--budget", "150%")[2].startswith("asl-gguf: --budget: expected a share")
    assert run("--guard", "2")[2].startswith("asl-gguf: --guard: ")


def test_a_prompt_that_is_longer_than_what_a_model_was_trained_on(run, monkeypatch):
    from asl_gguf.models import gguf_header

    monkeypatch.setattr(gguf_header, "n_ctx_train", lambda *_: 100)
    code, _, err = run()
    assert code == 0 and re.search(r"warning: the prompt has [\d,]+ tokens, and this model was trained on 100: ", err)
