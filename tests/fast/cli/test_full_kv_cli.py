"""`--full-kv` on the command line: a chat's next question about a document selects again, and /report says so."""

from __future__ import annotations

import json
import re
import sys
from contextlib import closing

import pytest

from asl_gguf.cli import main
from asl_gguf.cli.chat_session import ChatSession
from chats import ANSWER_OPTIONS, LLAMA_OPTIONS, N_TOKENS, SELECTS, contents, numbers
from tiny_llama import TEXT

AGAIN = "selected again for this turn, from K/V of all tokens"
QUESTIONS = ["What did he write?", "How was the weather on day 7?"]


def test_the_second_question_selects_again(chat, document):
    lines = [f"/file {document}", *(line for ask in QUESTIONS for line in (ask, "/report")), "/save a.json"]
    code, out, err = chat(lines, "--full-kv")
    assert (code, err) == (0, "")
    (kept, n_first, _), (kept_again, n_second, budget) = numbers("kept tokens", out)
    assert kept == n_first // 5 and kept_again == budget == n_second // 5
    assert numbers("selection layer", out) == [[3, 6]] * 2
    assert len(numbers("prefill", out)[0]) == 2
    assert re.findall(r"(\d+) tokens were in host memory", out) == [str(int(n_first))]
    (first_bytes, *_), (second_bytes, *_) = numbers("host MiB", out)
    assert 0 < first_bytes <= second_bytes
    assert re.findall("^note +(.*)$", out, re.MULTILINE) == [AGAIN]
    assert len(contents("a.json", "assistant")) == 2


def test_what_was_kept_is_the_last_questions_choice(model):
    with closing(ChatSession(model, 0.2, LLAMA_OPTIONS | {"asl_full_kv": True}, ANSWER_OPTIONS)) as session:
        session.add_document(TEXT)
        texts = []
        for question in QUESTIONS:
            session.ask(question, lambda part: None)
            llm, selected = session.load_model(), session.report.selected
            kept = llm.detokenize([llm.input_ids[i] for i in selected], special=True)
            texts.append(session.kept_text())
            assert texts[-1].replace(" ... ", "").replace(" ", "") == kept.decode("utf-8", "replace").replace(" ", "")
    assert session.report.reused_tokens and texts[0] != texts[1]


def test_without_it_the_second_question_goes_on(chat, document):
    code, out, err = chat([f"/file {document}", *QUESTIONS, "/report"])
    assert (code, err) == (0, "") and AGAIN not in out and not numbers("host MiB", out)
    assert re.findall(r"(\d+) tokens were in the cache", out)


def test_other_budgets(chat, document):
    """A share selects among the same tokens, in a model that was loaded anew; no budget has nothing to select."""
    lines = [QUESTIONS[0], "/budget none", "/budget ttft:9s", QUESTIONS[1], "/budget 0.5", "And then?", "/report"]
    code, out, err = chat(lines, "--full-kv", "-f", document)
    none, timed = err.splitlines()
    assert code == 1 and none.startswith("asl-gguf: --full-kv: expected --budget with it, got None")
    assert timed.startswith("asl-gguf: --full-kv: expected a budget in tokens, a share or memory with it, got ttft:9s")
    ((kept, n_tokens, _),) = numbers("kept tokens", out)
    assert kept == n_tokens // 2 and "in host memory" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal(open_terminal, document):
    terminal = open_terminal("--full-kv", "-n", str(N_TOKENS), "--policy", SELECTS)
    terminal.wait(r"\r\n> $")
    terminal.type(f"/file {document}\r")
    terminal.wait(r"in front of the next question\r\n> $")
    for question in QUESTIONS:
        terminal.type(f"{question}\r")
        said = terminal.wait(rf"(?:{re.escape(question)}\r\n|\x1b\[2K)[^\r\n]+\r\n\[kept [^\r\n]+\]\r\n> $")
        assert "K/V" in said and "first token" in said
    terminal.type("/report\r")
    report = terminal.wait(rf"note +{AGAIN}\r\n> $")
    assert re.search(r"prefill .*, \d+ tokens were in host memory\r\n", report)
    assert re.search(r"host MiB +[\d.]+, K/V of all tokens", report)
    terminal.type("/quit\r")
    assert terminal.end() == 0


def test_run(model, document, capsys):
    """A first prompt runs as without the option."""
    arguments = ["run", "-m", model, "-f", str(document), "-n", "4", "-t", "1", "--policy", SELECTS]
    reports = []
    for options in ([], ["--full-kv"]):
        assert main([*arguments, "--json", *options]) == 0
        reports.append(json.loads(capsys.readouterr().out)["report"])
    plain, full = reports
    assert plain["full_kv_bytes"] == 0 < full["full_kv_bytes"]
    for name in ("token_layers", "selected", "selection_layer", "rows_by_layer"):
        assert full[name] == plain[name], name
    assert full["kept_tokens"] == plain["kept_tokens"] < full["prompt_tokens"]
    assert main([*arguments, "--full-kv", "-b", "none"]) == 2
    assert "--full-kv: expected --budget with it" in capsys.readouterr().err
