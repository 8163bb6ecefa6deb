from __future__ import annotations

import contextlib
import urllib.error
from types import SimpleNamespace

import pytest

from asl_gguf.cli import serve
from asl_gguf.cli.serve import from_files, page_address
from asl_gguf.errors import OptionError
from asl_gguf.server.options import FLAGS, help_text, split
from asl_gguf.server.rule import RequestOptions
from asl_gguf.server.run import with_model


def test_ours_are_taken_and_the_rest_passes_in_order():
    options, rest = split(
        ["-m", "x.gguf", "--asl-budget", "0.1", "-np", "4", "--asl-room=64", "--jinja", "-c", "8192"], {}
    )
    assert (options.budget, options.room) == (0.1, 64)
    assert rest == ["-m", "x.gguf", "-np", "4", "--jinja", "-c", "8192"]


def test_budgets_that_follow_the_question():
    options, _ = split(["--asl-budget", "auto:0.1-0.3", "--asl-min-prompt", "64", "--asl-full-kv", "q8_0"], {})
    assert options.to_dict()["budget"] == "auto:0.1-0.3" and options.full_kv == "q8_0"
    budget = options.make_budget(options.budget)
    assert (budget.least, budget.most, budget.min_prompt) == (0.1, 0.3, 64)
    assert RequestOptions.parse('{"budget": "auto"}').budget.most == 0.4
    with pytest.raises(OptionError, match="slots share memory and time"):
        RequestOptions.parse('{"budget": "ttft:5s"}')


def test_every_flag_has_a_default_an_environment_variable_and_help():
    options, _ = split([], {})
    for flag in FLAGS:
        assert flag.option in help_text() and flag.env in help_text()
        assert repr(getattr(options, flag.field)) == repr(flag.parse(flag.default))
    assert set(options.to_dict()) == {flag.field for flag in FLAGS}


def test_a_routers_servers_get_its_flags_by_the_environment():
    """Those that were given, as they were written; the others stay open to what the environment says."""
    arguments = ["--asl-budget", "auto:0.1-0.3", "--asl-protect=system,tools"]
    options, _ = split(arguments, {"LLAMA_ARG_ASL_ROOM": "64"})
    handed_on = options.to_env()
    assert set(handed_on) == {"LLAMA_ARG_ASL_BUDGET", "LLAMA_ARG_ASL_PROTECT", "LLAMA_ARG_ASL_ROOM"}
    assert split([], handed_on)[0] == options


def test_the_command_line_wins_over_the_environment():
    env = {"LLAMA_ARG_ASL_BUDGET": "512", "LLAMA_ARG_ASL_SLICE_MS": "20"}
    options, _ = split(["--asl-budget", "0.3"], env)
    assert (options.budget, options.slice_ms) == (0.3, 20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--asl-buget", "0.2"], "--asl-buget"),
        (["--asl-budget"], "--asl-budget: expected a value"),
        (["--asl-budget", "1.5"], "--asl-budget: asl_budget: expected a share"),
        (["--asl-budget", "fit:2GiB"], "--asl-budget: expected a share, a number of tokens or auto"),
        (["--asl-budget", "auto:0.5-0.2"], "--asl-budget: asl_budget: expected"),
        (
            ["--asl-budget", "auto", "--asl-policy", "snapkv"],
            "--asl-budget: asl_budget: expected a policy that decides",
        ),
        (["--asl-full-kv", "q3"], "--asl-full-kv: expected one of off, on, q8_0"),
        (["--asl-full-kv", "on", "--asl-budget", "none"], "--asl-full-kv: expected --asl-budget"),
        (["--asl-budget", "5"], "expected at least"),
        (["--asl-policy", "none-such"], "--asl-policy: policy: expected one of"),
        (["--asl-policy", "pyramidinfer"], "as many rows in every layer"),
        (["--asl-policy", "asl-span:cache_k=64"], "as many rows in every layer"),
        (["--asl-room", "-1"], "--asl-room: expected a whole number of at least 1"),
        (["--asl-dequant", "maybe"], "--asl-dequant: expected one of"),
        (["--asl-protect", "system,user"], "--asl-protect: expected none or some of"),
        (["--asl-guard", "2"], "--asl-guard: expected a share"),
        (["--asl-slice-ms", "0"], "--asl-slice-ms: expected a whole number of at least 1"),
        (["--asl-wait", "0"], "--asl-wait: expected a whole number of at least 1"),
        (["--asl-open", "maybe"], "--asl-open: expected one of off, on"),
        (["--asl-answers", "-1"], "--asl-answers: expected a whole number of at least 0"),
    ],
)
def test_wrong_flags_are_refused_with_their_name(arguments, said):
    with pytest.raises(OptionError) as refused:
        split(arguments, {})
    assert said in str(refused.value)


def test_the_page_has_the_servers_address():
    assert page_address([], {}) == "http://127.0.0.1:8080/asl"
    arguments = ["-m", "x", "--host", "0.0.0.0", "--port", "9", "--api-prefix", "/p"]
    assert page_address(arguments, {"LLAMA_ARG_PORT": "7"}) == "http://127.0.0.1:9/p/asl"
    assert page_address([], {"LLAMA_ARG_PORT": "7", "LLAMA_ARG_HOST": "box"}) == "http://box:7/asl"
    assert page_address("--host ::1 --api_prefix /p".split(), {}) == "http://[::1]:8080/p/asl"
    assert page_address(["--host", "a.sock"], {}) is None
    key, certificate = ["--ssl-key-file", "k"], {"LLAMA_ARG_SSL_CERT_FILE": "c"}
    assert page_address(key, certificate) == "https://127.0.0.1:8080/asl"
    assert page_address(key, {}) == "http://127.0.0.1:8080/asl"


def test_ours_have_underscores_too():
    options, rest = split(["--asl_min_prompt", "64", "--asl_room=32", "--ctx_size", "8"], {})
    assert (options.min_prompt, options.room, rest) == (64, 32, ["--ctx_size", "8"])


def test_the_last_model_counts(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert with_model(["-m", "none", "--model", str(file)]) == ["-m", "none", "--model", str(file)]
    assert with_model(["--hf_repo", "a/b", "-m", "new.gguf"]) == ["--hf_repo", "a/b", "-m", "new.gguf"]


def test_arguments_come_from_files(tmp_path):
    file = tmp_path / "serve.args"
    file.write_text("-m 'a model.gguf'  # mine\n--asl-budget 0.1\n\n-np 4", encoding="utf-8")
    assert from_files(["-c", "8192", f"@{file}", "--port", "9"]) == [
        "-c", "8192", "-m", "a model.gguf", "--asl-budget", "0.1", "-np", "4", "--port", "9",
    ]  # fmt: skip
    file.write_text("--api-key @secret", encoding="utf-8")
    assert from_files([f"@{file}"]) == ["--api-key", "@secret"]
    file.write_text("-m 'a", encoding="utf-8")
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(OptionError, match="expected a file of arguments"):
            from_files([f"@{wrong}"])


def test_the_page_opens_when_the_server_is_ready(monkeypatch):
    opened, statuses = [], [503, OSError("refused"), 200]

    def ask(address, timeout):
        assert address == "http://127.0.0.1:9/p/health"
        found = statuses.pop(0)
        if found == 200:
            return contextlib.nullcontext(SimpleNamespace(status=200))
        raise found if isinstance(found, OSError) else urllib.error.HTTPError(address, found, "loading", {}, None)

    monkeypatch.setattr(serve.urllib.request, "urlopen", ask)
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    serve.open_when_ready("http://127.0.0.1:9/p/asl", pause=0)
    assert opened == ["http://127.0.0.1:9/p/asl"] and not statuses


def test_no_page_opens_without_a_desktop(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serve.sys, "platform", "linux")
    serve.open_when_ready("http://127.0.0.1:9/asl")  # comes back at once


def test_requests():
    for nothing in (
        "",
        "null",
        "{}",
        '{"budget": null, "policy": null, "protect": null, "guard": null, "full_kv": null}',
    ):
        assert RequestOptions.parse(nothing) == RequestOptions()
    assert RequestOptions.parse('{"budget": 0.1, "policy": "snapkv"}') == RequestOptions(0.1, "snapkv")
    assert RequestOptions.parse('{"protect": "system", "guard": 1}') == RequestOptions(protect=("system",), guard=1.0)
    assert RequestOptions.parse('{"full_kv": false}') == RequestOptions(full_kv=False)
    assert RequestOptions.parse('{"protect": ["tools", "question"]}').protect == ("tools", "question")


@pytest.mark.parametrize("name", ["budget", "policy", "protect", "guard", "full_kv"])
@pytest.mark.parametrize(
    "value",
    [
        "true", "[]", "{}", "-1", "-0.5", "1e300", "99999999999999999999", '"\\u0000"', '"\\ud800"', '["system", 3]', '[["system"]]',
        '{"system": true}', f'"{"x" * 10000}"',
    ],
)  # fmt: skip
def test_hostile_values_are_refused_in_one_line(name, value):
    if (name, value) in (("protect", "[]"), ("full_kv", "true")):
        return  # nothing is protected
    with pytest.raises(OptionError) as refused:
        RequestOptions.parse(f'{{"{name}": {value}}}')
    text = str(refused.value)
    assert "expected" in text and name in text and "\n" not in text and len(text) < 600
    text.encode("utf-8")


@pytest.mark.parametrize("text", ["3", "[]", '"budget"', '{"room": 3}', '{"": 1}', '{"policy": "pyramidinfer"}'])
def test_wrong_requests_are_refused(text):
    with pytest.raises(OptionError):
        RequestOptions.parse(text)
