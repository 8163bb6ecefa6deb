"""Samplers, templates and escapes of llama.cpp's programs act as they do there."""

from __future__ import annotations

import json
import os
import re

import pytest

from asl_gguf.cli import main
from asl_gguf.cli.sampler_chain import Samplers
from asl_gguf.native.bindings import llama_cpp
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_llama import TEXT

SAMPLED = ("--temp", "1.5", "-s", "3")


@pytest.fixture
def run(tiny_model, capsys):
    """`run(*arguments)`: exit code, the answer or None, and stderr, with the full cache."""

    def run(*arguments: object, command: str = "run"):
        model = str(tiny_model("llama"))
        given = (command, "-m", model, "-p", TEXT, "-n", "24", "-t", "1", "--json", "-b", "none", *arguments)
        code = main(list(map(str, given)))
        out, err = capsys.readouterr()
        return code, json.loads(out)["text"] if out else None, err

    return run


@pytest.mark.parametrize(
    "beside, option",
    [
        ("-l 70+99 --ignore-eos", "--dry-multiplier 50 --dry-allowed-length 1"),
        ("-l 70+12 --ignore-eos --repeat-penalty 9", "--repeat-last-n 1"),
        ("", "--top-nsigma 0.01"), ("", "--xtc-probability 1 --xtc-threshold 0.01"), ("", "--dynatemp-range 1.4 --dynatemp-exp 3"),
        ("", "-l 70+99"), ("-l 2+99", "--ignore-eos"),
    ],
)  # fmt: skip
def test_each_acts(run, beside, option):
    code, text, err = run(*SAMPLED, *beside.split(), *option.split())
    assert (code, err) == (0, "") and text != run(*SAMPLED, *beside.split())[1]


def test_a_bias_chooses(run):
    code, text, _ = run("-l", "70+999", "--ignore-eos")
    assert code == 0 and len(text) == 24 and len(set(text)) == 1


@pytest.fixture
def llm(tiny_model):
    from asl_gguf import Llama

    llm = Llama(str(tiny_model("llama")), n_ctx=128, verbose=False, n_threads=1)
    yield llm
    llm.close()


def chain(llm, temperature: float = 0.8, **options) -> list[str]:
    """Names of the samplers after the logits processor, in their order."""
    Samplers(**options).install(llm)
    processors = llama_cpp.LogitsProcessorList([lambda _, scores: scores])
    sampler = llm._init_sampler(temp=temperature, logits_processor=processors, repeat_penalty=1.1, typical_p=0.9)
    n_samplers = llama_cpp.llama_sampler_chain_n(sampler.sampler)
    after = [
        llama_cpp.llama_sampler_chain_get(sampler.sampler, i) for i in range(1, n_samplers)
    ]  # the processor has no name
    names = [llama_cpp.llama_sampler_name(one).decode().lstrip("?") for one in after]
    sampler.close()  # frees each once
    return names


def test_their_order_is_that_of_llama_cpp(llm):
    names = chain(llm, dry_multiplier=1.0, top_nsigma=1.0, xtc_probability=0.5, dynatemp_range=0.5, ignore_eos=True)
    assert names == [
        "logit-bias", "penalties", "dry", "top-n-sigma", "top-k", "typical", "top-p", "min-p", "xtc", "temp-ext", "dist"
    ]  # fmt: skip


def test_nothing_asked_for_leaves_the_chain_alone(llm):
    assert chain(llm, repeat_last_n=7) == ["penalties", "top-k", "typical", "top-p", "min-p", "temp", "dist"]
    assert llm.last_n_tokens_size == 7


def test_greedy_answers_have_penalties_and_biases_alone(llm):
    options = {"dry_multiplier": 1.0, "top_nsigma": 1.0, "xtc_probability": 0.5, "logit_bias": ((3, 1.0),)}
    assert chain(llm, temperature=0.0, **options) == ["logit-bias", "penalties", "dry", "greedy"]


@pytest.mark.parametrize(
    "option, why",
    [
        ("--xtc-probability 0.5 --top-nsigma 1", "--top-nsigma, --xtc-probability: without effect at --temp 0, .*"),
        ("--temp 1 --mirostat 2 --dynatemp-range 1", "--dynatemp-range: without effect beside --mirostat, .*"),
        (
            """--chat-template chatml --chat-template-kwargs {"a":1}""",
            "--chat-template-kwargs: without effect, chatml is code of llama.cpp, .*",
        ),
        ("--warmup", "--warmup: without effect, a model's first run is its first prompt"),
        ("-C 3", "-C: without effect, taskset -c .*"),
    ],
)
def test_what_has_no_effect_is_said(run, option, why):
    code, _, err = run(*option.split())
    assert code == 0 and re.fullmatch(f"asl-gguf: warning: {why}\n", err), err


@pytest.mark.parametrize(
    "option, expected",
    [
        ("--logit-bias x+1", "TOKEN+BIAS or TOKEN-BIAS such as 15043+1, got 'x+1'"),
        ("--logit-bias 99999999+1", "tokens below"),
        ("--dry-sequence-breaker=", "a text, got an empty one"),
        ("--repeat-last-n -1", "at least 0, got -1"),
        ("--xtc-probability 2", "a number from 0 to 1, got 2.0"),
        ("--rope-scale 0", "a number from 1e-09 on, got 0.0"),
        ("--rope-scale 2 --rope-freq-scale 2", "no --rope-freq-scale beside it"),
        ("--lora-scaled adapter.gguf", "FILE:SCALE such as adapter.gguf:0.5, got 'adapter.gguf'"),
        ("--override-kv a=int:b", "KEY=TYPE:VALUE such as"),
        ("--chat-template chatmll", "did you mean chatml?"),
        ("--chat-template {{", "a Jinja template, got TemplateSyntaxError"),
        ("--chat-template {{raise_exception('no')}}", "a template that writes this conversation, got ValueError: no"),
        ("--chat-template chatml --chat-template-file x", "alone, got it with --chat-template-file"),
        ("--chat-template chatml --raw", "the chat template, got --raw"),
        ("--chat-template-kwargs [1]", "a JSON object such as"),
    ],
)
def test_what_they_are_not(run, option, expected):
    code, text, err = run(*option.split())
    name = option.split()[0].rstrip("=")
    assert code == 2 and text is None and err.count("\n") == 1, err
    assert err.startswith(f"asl-gguf: {name}: expected ") and expected in err, err


def written(run, monkeypatch, *arguments: str) -> str:
    """The prompt as the model gets it."""
    seen = []
    tokenize = llama_cpp.Llama.tokenize

    def noted(self, text, *args, **kwargs):
        seen.append(text)
        return tokenize(self, text, *args, **kwargs)

    monkeypatch.setattr("asl_gguf.Llama.tokenize", noted)
    assert run("-n", "1", *arguments)[0] == 0
    return seen[0].decode()


def test_templates(run, monkeypatch, tmp_path):
    chatml = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    assert written(run, monkeypatch, "--chat-template", "chatml") == chatml
    own = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ mark }}{% endfor %}"
    assert written(run, monkeypatch, "--chat-template", own) == f"[user] {TEXT}"
    file = tmp_path / "own.jinja"
    file.write_text(own)
    given = ("--chat-template-file", str(file), "--chat-template-kwargs", '{"mark": "!"}')
    assert written(run, monkeypatch, *given) == f"[user] {TEXT}!"


def test_a_template_beside_pruning(run):
    code, _, err = run(
        "-b", "0.2", "--chat-template", "llama2", "--protect", "system", "-sys", "short", "--min-p", "0.1"
    )
    assert code == 0 and "without effect at --temp 0" in err


@pytest.mark.parametrize(
    "given, read",
    [(r"a\nb\tc", "a\nb\tc"), (r"a\\nb", r"a\nb"), (r"\d \q", r"\d \q"), ("a\\", "a\\"), (r"\x41\xc3\xa9", "Aé"), (r"\xg", r"\xg")],
)  # fmt: skip
def test_escapes(run, monkeypatch, given, read):
    assert written(run, monkeypatch, "--raw", "-p", given) == read
    assert written(run, monkeypatch, "--raw", "--no-escape", "-p", given) == given


def test_documents_have_no_escapes(run, monkeypatch, tmp_path):
    (tmp_path / "code.py").write_text(r"print('a\n')")
    assert (
        written(run, monkeypatch, "--raw", "-f", str(tmp_path / "code.py"), "-p", r"what\?")
        == "print('a\\n')\n\nwhat\\?"
    )


@pytest.mark.parametrize("given", [r"\xff", r"a\x00b", r"\n\t"])
def test_escapes_of_no_text(run, given):
    code, text, err = run("-p", given)
    assert code == 2 and text is None and err.startswith("asl-gguf: expected ") and err.count("\n") == 1


def test_an_answer_ends_at_an_escape(run):
    whole = run("-l", "13+30")[1]
    assert "\n" in whole and run("-l", "13+30", "-r", r"\n")[1] == whole.split("\n")[0]


def test_all_cores(run, monkeypatch):
    import asl_gguf

    seen = []
    monkeypatch.setattr(asl_gguf, "Llama", lambda *_, **options: seen.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("-t", "-1", "-tb", "0")
    cores = len(os.sched_getaffinity(0))
    assert (seen[0]["n_threads"], seen[0]["n_threads_batch"]) == (cores, cores)


def test_loading_options_reach_the_model(run, monkeypatch):
    import asl_gguf

    seen = []
    monkeypatch.setattr(asl_gguf, "Llama", lambda *_, **options: seen.append(options) or 1 / 0)
    given = (
        "-lm none --numa isolate -nkvo --no-op-offload -sm row --rope-scaling yarn --rope-scale 4 --yarn-beta-fast 8"
    )
    with pytest.raises(ZeroDivisionError):
        run(*given.split(), "--override-kv", "a.b=bool:true", "--override-kv", "c=int:3", "--lora-scaled", "x:0.5")
    expected = {
        "use_mmap": False, "numa": 2, "offload_kqv": False, "op_offload": False, "split_mode": 2, "rope_scaling_type": 2,
        "rope_freq_scale": 0.25, "yarn_beta_fast": 8.0, "kv_overrides": {"a.b": True, "c": 3}, "lora_path": "x", "lora_scale": 0.5,
    }  # fmt: skip
    assert {name: seen[0].get(name) for name in expected} == expected


def test_a_system_message_in_a_file(run, monkeypatch, tmp_path):
    (tmp_path / "system.txt").write_text("short")
    given = ("--chat-template", "chatml", "-sysf", str(tmp_path / "system.txt"))
    assert written(run, monkeypatch, *given).startswith("<|im_start|>system\nshort<|im_end|>\n")
    assert run(*given, "-sys", "x")[0] == 2


@pytest.mark.parametrize(
    "given",
    [("--top-nsigma", "0.01"), ("-l", "91-inf"), ("--ignore-eos",), ("-l", "91-inf", "--top-nsigma", "0.01")],
)
def test_a_grammar_has_its_way(run, given):
    """Where nothing is left of what it allows, llama.cpp ends the process."""
    assert run("--grammar", 'root ::= "XXX"', *SAMPLED, *given) == (0, "XXX", "")


@pytest.mark.parametrize(
    "given", [("-l", "70+500", "-l", "70+499"), ("-l", "70+9.99e2"), ("-l", "70-inf", "-l", "70+inf")]
)
def test_biases_of_a_token_add_up(run, given):
    assert run("--ignore-eos", *given) == run("--ignore-eos", "-l", "70+999")


@pytest.mark.parametrize(
    "given, what", [("[" * 100_000, "recursion"), ('{"messages": []}', "every template has its own messages")]
)
def test_variables_that_are_none(run, given, what):
    code, text, err = run("--chat-template", "{{ 1 }}", "--chat-template-kwargs", given)
    assert code == 2 and text is None and what in err and err.count("\n") == 1


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat_at_a_temperature(llm, mode):
    Samplers().install(llm)
    sampler = llm._init_sampler(temp=0.3, mirostat_mode=mode)
    n_samplers = llama_cpp.llama_sampler_chain_n(sampler.sampler)
    ones = [llama_cpp.llama_sampler_chain_get(sampler.sampler, i) for i in range(n_samplers)]
    names = [llama_cpp.llama_sampler_name(one).decode() for one in ones]
    assert names[-2:] == ["temp", "mirostat" if mode == 1 else "mirostat-v2"]
    sampler.close()
