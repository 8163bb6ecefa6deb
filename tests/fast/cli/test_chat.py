"""`asl-gguf chat` on a tiny model: a script of lines in this process, and a pseudo-terminal in one of its own."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from asl_gguf import OptionError
from asl_gguf.cli import chat_session
from asl_gguf.cli.chat_session import ChatSession
from asl_gguf.drop_in import progress
from chats import ANSWER_OPTIONS, LLAMA_OPTIONS, N_TOKENS, contents, messages, numbers
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_llama import TEXT


@pytest.fixture(name="session")
def open_session(model):
    session = ChatSession(model, 0.2, LLAMA_OPTIONS, ANSWER_OPTIONS)
    yield session
    session.close()


def test_a_conversation(chat, document):
    code, out, err = chat(
        [
            "/report",
            "/kept",
            "  ",
            f"/file {document}",
            "/file document.txt ",
            "What did \\",
            "he write?",
            "/report",
            "/kept",
            "/budget 0.5",
            '"""',
            "/help",
            "",
            'print("""a""")',
            '"""',
            "/report",
            " /report",
            "/save first.json",
            "/clear",
            "/save cleared.json",
            "/load first.json",
            "/save again.json",
            "/quit",
            "/save never.json",
        ],
        "--system",
        "Be brief.",
    )
    assert (code, err) == (0, "") and not Path("never.json").exists()
    system = [{"role": "system", "content": "Be brief."}]
    saved = messages("first.json")
    assert [message["role"] for message in saved] == ["system", *["user", "assistant"] * 3]
    questions = [f"{TEXT}\n\n{TEXT}\n\nWhat did \nhe write?", '/help\n\nprint("""a""")', " /report"]
    assert contents("first.json", "user") == questions
    assert messages("cleared.json") == system == saved[:1] and messages("again.json") == saved
    lines = out.splitlines()
    assert [answer in lines for answer in contents("first.json", "assistant")] == [True] * 3
    assert "no prompt was prefilled yet" in lines and not re.search(r"^[>.] ", out, re.MULTILINE)

    (kept, n_prompt, budget), (kept_more, n_longer, _) = numbers("kept tokens", out)
    assert kept == budget == n_prompt // 5 and n_longer > n_prompt and kept_more == n_longer // 2
    assert numbers("selection layer", out)[0] == [3, 6]
    (seconds, speed), (now, full, _), (mass,) = (
        numbers(row, out)[0] for row in ("prefill", "K/V MiB", "attention mass")
    )
    assert seconds > 0 and speed > 0 and 0 < now < full and 0 < mass < 1


def test_kept_text(chat, document):
    _, out, _ = chat([f"/file {document}", "Who wrote?", "/kept", "/save a.json"], "--system", "Be brief.")
    (answer,) = contents("a.json", "assistant")
    assert out.startswith(f"{answer}\n") and out.endswith("\n")
    runs = out[len(answer) + 1 : -1].split(" ... ")
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    whole = f"{system}<|im_start|>user\n{TEXT}\n\nWho wrote?<|im_end|>\n<|im_start|>assistant\n"
    at = 0
    for run in runs:
        at = whole.index(run, at) + len(run)
    assert len(runs) > 5 and at == len(whole) and sum(map(len, runs)) < len(whole) / 2


@pytest.mark.parametrize("options", [["-b", "none"], ["--policy", "snapkv"], ["-b", "1.0"]], ids=str)
def test_no_tokens_were_dropped(chat, document, options):
    code, out, err = chat(["/kept", "Who wrote?", "/kept", "/report"], "-f", document, *options)
    said = "no prefill dropped tokens of its prompt; /report says more"
    assert (code, err) == (0, "") and out.splitlines().count(said) == 2
    (kept, n_prompt, _), *_ = numbers("kept tokens", out)
    assert ("nothing pruned" in out) == (kept == n_prompt) == (options != ["--policy", "snapkv"])
    assert n_prompt > 256


def test_errors_leave_a_chat(chat, document, tmp_path):
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "archive").write_bytes(b"name\0\0")
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "list.json").write_text('["a"]')
    (tmp_path / "role.json").write_text('{"messages": [{"role": "robot", "content": "a"}]}')
    (tmp_path / "text.json").write_text('{"messages": "ab"}')
    (tmp_path / "part.json").write_text('{"messages": [{"role": "user"}]}')
    wrong = {
        "/nope": "expected one of /file, .*, /quit, got /nope; ",
        "/": "expected one of ",
        "/file": "expected /file PATH, got /file",
        "/clear all": "expected /clear alone, got /clear all",
        "/file missing": "expected readable UTF-8 text, got missing: ",
        "/file .": "expected readable UTF-8 text, got ",
        "/file picture": "expected text, HTML, a PDF or DOCX, got picture, which is an image; ",
        "/file archive": "expected readable UTF-8 text, got archive: .*null",
        "/file blank": "expected readable UTF-8 text, got blank: .*empty",
        "/file ~nobody-of-this-name/a": "expected ",
        "/load list.json": "expected a conversation .* in list.json, got TypeError",
        "/load role.json": "expected a conversation .* got ValueError: a role that is none of system, user",
        "/load text.json": "expected a conversation .* got TypeError",
        "/load part.json": "expected a conversation .* got ValueError",
        "/load missing": "expected readable UTF-8 text, got missing: ",
        "/save nowhere/a.json": "expected a file that can be written, got nowhere/a.json: ",
        "/budget x": "expected a share such as .*, got 'x'",
        "/budget 1": "expected at least .* tokens.*, got 1",
        "/budget 1.5": "expected a share .*, got 1.5",
        "word " * 400: "expected fewer than --ctx-size = 768 tokens, got a prompt of ",
    }
    lines = ["Who wrote?", "/save before.json", *wrong, "And then?", "/report", "/save after.json", '"""', "unended"]
    code, out, err = chat(lines, "-f", document, "-c", "768")
    expectations = [*wrong.values(), 'expected a line of """ .*, got the end of the lines']
    for expected, line in zip(expectations, err.splitlines(), strict=True):
        assert re.match(f"asl-gguf: .*{expected}", line), (expected, line)
    assert code == 1
    assert contents("after.json", "user") == [*contents("before.json", "user"), "And then?"]
    ((kept, n_prompt, _),) = numbers("kept tokens", out)
    assert kept < n_prompt  # the budget of the start is still in use


def test_a_prompt_too_long_for_the_full_cache(chat):
    """llama_cpp's own error, and a file that stays for the next question."""
    Path("long.txt").write_text("word " * 400)
    lines = ["/file long.txt", "Who?", "/clear", "Who?", "/save a.json"]
    code, out, err = chat(lines, "-c", "300", "-b", "none")
    assert code == 1 and re.fullmatch("asl-gguf: expected a conversation .*, got: Requested tokens .*\n", err)
    assert contents("a.json", "user") == ["Who?"] and out == f"{contents('a.json', 'assistant')[0]}\n"


def test_lines_that_are_no_text(chat):
    code, out, err = chat(b"caf\xe9\nWho?\\\n")
    assert code == 1 and re.fullmatch("asl-gguf: expected lines of UTF-8 text, .*\n", err) and len(out) > N_TOKENS


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["-b", "x"], 2, "--budget: expected .*, got 'x'"),
        (["-n", "0"], 2, "--max-tokens: expected .*, got 0"),
        (["--policy", "x"], 2, "expected one of .*, got 'x'"),
        (["-f", "missing"], 2, "expected readable UTF-8 text, got missing: "),
        (["-m", "missing.gguf"], 1, "expected a GGUF file or a named model"),
        (["--decode-ctx", "0"], 2, "--decode-ctx: expected .*, got 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wrong_use(chat, arguments, code, message):
    found, out, err = chat(["Who?"], *arguments)
    assert (found, out) == (code, "") and re.fullmatch(rf"asl-gguf: .*{message}.*\n", err), err


def test_help(chat, capsys):
    with pytest.raises(SystemExit):
        chat([], "--help")
    assert capsys.readouterr().out.startswith("usage: asl-gguf chat")
    with pytest.raises(SystemExit) as err:
        chat([], "--fly")
    assert err.value.code == 2
    _, out, _ = chat(["/help"])
    for name in ("/file PATH", "/budget X", "/report", "/kept", "/save PATH", "/load PATH", "/clear", "/help", "/quit"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE), name


def test_a_seed_repeats_sampled_answers(chat):
    answers = [chat(["Who?", "Who?"], "--temp", "1.5", "-s", seed)[1] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_the_context_grows_with_the_file(chat, document, tiny_model):
    """Beyond the model's training context."""
    small = tiny_model("llama", n_ctx_train=128)
    code, out, err = chat(["Who?", "/report"], "-f", document, "-m", small)
    assert code == 0 and "this model was trained on 128: answers may make no sense" in err
    assert numbers("kept tokens", out)[0][1] > 256


def test_ctrl_c_ends_a_script(chat, document, monkeypatch):
    def interrupt(self, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressBar, "__call__", interrupt)
    assert chat(["Who?", "/help"], "-f", document) == (130, "", "asl-gguf: cancelled\n")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interrupted_question_is_withdrawn(session, share, request):
    """With its document, however far the prefill is when a signal comes, and the model answers the next one."""
    calls = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def progress(done: int, total: int) -> None:
        calls.append(done / total)
        if calls[-1] >= share:
            signal.raise_signal(signal.SIGINT)

    parts: list[str] = []
    session.add_document(TEXT)
    with pytest.raises(KeyboardInterrupt):
        session.ask("Who?", parts.append, progress)
    assert (session.messages, parts, session.report) == ([], [], None) and calls
    assert [call >= share for call in calls].count(True) == 1  # this call ends the prefill
    assert session.ask("What?", parts.append)
    assert session.messages == [
        {"role": "user", "content": f"{TEXT}\n\nWhat?"},
        {"role": "assistant", "content": "".join(parts)},
    ]


def test_an_interrupted_answer_stays(session):
    def show(part: str) -> None:
        parts.append(part)
        if len(parts) == 2:
            raise KeyboardInterrupt

    parts: list[str] = []
    assert not session.ask(TEXT, show)
    assert session.messages[1:] == [{"role": "assistant", "content": "".join(parts)}] and len(parts) == 2
    assert session.report.pruned and session.speed.tokens > 0
    assert session.ask("Go on.", parts.append) and len(session.messages) == 4


def test_another_budget_loads_the_model_again(session, monkeypatch):
    """Where that fails the chat can choose a budget that works; a wrong budget changes nothing."""
    first = session.load_model()
    with pytest.raises(OptionError):
        session.set_budget(2.0)
    assert session.load_model() is first
    with monkeypatch.context() as patch:
        patch.setattr(chat_session, "Llama", lambda *_, **__: (_ for _ in ()).throw(ValueError("no\nmemory")))
        with pytest.raises(chat_session.NativeError, match="got: no memory"):
            session.set_budget(0.9)
    session.set_budget(0.5)
    assert session.load_model() is not first
    session.ask(TEXT, lambda part: None)
    assert session.report.kept_tokens == session.report.prompt_tokens // 2


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal(open_terminal, tmp_path):
    """Prompts, Ctrl-C in a line, in an answer and in a prefill, progress, history, Ctrl-D."""
    (tmp_path / "long.txt").write_text(TEXT * 25)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "chat_history").write_text("/report\n/help\n")
    saved = tmp_path / "saved.json"
    terminal = open_terminal("-c", "16384", "-n", "4000")
    assert "n_ctx 16384. /help lists" in terminal.wait(r"\r\n> $")
    terminal.type("\x10\r")  # the line before: of an earlier chat
    assert "/quit" in terminal.wait(r"/help[^$]*\r\n> $")

    terminal.type("unfinished \\\r")
    terminal.wait(r"\. $")
    terminal.type("thought")
    terminal.wait("thought")
    time.sleep(0.2)  # a signal that comes while readline handles a key waits for the next one
    terminal.type("\x03")
    terminal.wait(r"\r\n> $")

    terminal.type("Who wrote?\r")
    terminal.wait(r"Who wrote\?\r\n[^\r\n]{20}")
    terminal.type("\x03")
    answer = terminal.wait(r"\r\nstopped\r\n> $")

    terminal.type(f"/file {tmp_path / 'long.txt'}\r")
    terminal.wait(r"\r\n\d{4,} tokens, in front of the next question\r\n> $")
    terminal.type("And then?\r")
    terminal.wait(r"\rprefill \[#*\.+\] +\d+% +\d+ s left")
    terminal.type("\x03")
    assert "\r\x1b[2K" in terminal.wait(r"stopped; the question is withdrawn\r\n\r\n> $")

    terminal.type(f"/save {saved}\r")
    terminal.wait(r"saved 2 messages\r\n> $")
    terminal.type("/clear\r")
    terminal.wait(r"> $")
    terminal.type("\x04")
    assert terminal.end() == 0, terminal.drawn
    assert contents(saved, "user") == ["Who wrote?"]
    (kept,) = contents(saved, "assistant")
    assert len(kept) >= 20 and kept[20:].startswith(answer.partition("^C")[0].partition("\r")[0])
    lines = (tmp_path / "config" / "chat_history").read_text().splitlines()
    assert lines[:2] == ["/report", "/help"] and {"Who wrote?", "And then?", "/clear"} <= set(lines)
    assert b"Traceback" not in terminal.drawn


def test_a_budget_is_shown(chat):
    code, out, err = chat(["/budget", "/budget 30%", "/budget", "/budget none", "/budget"], "-b", "0.5")
    assert (code, out.splitlines(), err) == (0, ["0.5", "0.3", "none"], "")


def test_commands_as_other_programs_call_them(chat, document):
    code, out, err = chat([f"/read {document}", "/?", "/bye", "/nope"])
    assert (code, err) == (0, "") and "/quit" in out
    assert chat(["/exit", "/nope"])[::2] == (0, "")
