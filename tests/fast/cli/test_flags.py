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
from asl_gguf.cli.options import KV_TYPES, parse_budget
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
    for options, name in ((["-ctk", "q8_0", "-fa"], "type_k"), (["-ctv", "q4_1", "-fa"], "type_v")):
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
