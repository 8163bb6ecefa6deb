"""Suites of `asl-gguf eval`: plans that build, options that replace parts, names that are unknown, chat formats."""

from __future__ import annotations

import pytest

from asl_gguf.cli import evaluate, main
from asl_gguf.errors import OptionError
from asl_gguf.eval.chat_format import from_template
from asl_gguf.eval.suites import FAMILIES, INFINITEBENCH, QUESTIONS, RULER, SUITES, Files, plans
from asl_gguf.eval.tasks import CHATML, ChatFormat, make_task, task_class
from asl_gguf.policies import parse_policy

LLAMA_2 = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_builds(suite):
    """Each task makes its first example at a tiny length, each policy is one."""
    parts, left_out = plans(suite, {"lengths": (1200,), "samples": 1}, Files())
    assert sum(len(part.tasks) for part in parts) + len(left_out) == sum(len(part.tasks) for part in SUITES[suite])
    for part in parts:
        assert all(parse_policy(text) for text in part.policies) and part.budgets
        for spec in part.tasks:
            task = make_task(spec, count, part.lengths[0], part.samples, part.seed)
            made = task.get_example(task.indices(part.depths)[0])
            assert 0 < made.n_tokens <= 1200


def test_paper():
    ruler, infinitebench, niah = SUITES["paper"]
    assert len(ruler.tasks) == 13 and ruler.lengths == (8192,)
    assert infinitebench.lengths == (131072,) and niah.lengths[0] == 4096 and niah.lengths[-1] == 262144
    assert all(part.budgets == (2048,) and "asl" in part.policies for part in SUITES["paper"])
    parts, left_out = plans("paper", {}, Files())
    assert left_out == ["qa_1", "qa_2", *INFINITEBENCH[5:]]
    parts, left_out = plans("paper", {}, Files("essays.txt", "s.json", "h.json", "ib"))
    assert not left_out
    assert parts[0].tasks[1:3] == ("niah_single_2:essays.txt", "niah_single_3:essays.txt")
    assert parts[0].tasks[-2:] == ("qa_1:s.json", "qa_2:h.json")
    assert parts[1].tasks[5] == "longbook_qa_eng:ib/longbook_qa_eng.jsonl"
    assert parts[2].tasks == ("niah:essays.txt",)


def test_a_haystack_goes_to_the_tasks_that_have_one():
    takes = [task for task in RULER if Files(haystack="a.txt").spec(task) != task]
    assert takes == [
        *("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"),
    ]
    assert (
        Files(haystack="noise").spec("niah") == "niah:noise" and Files(haystack="noise").spec("multikey") == "multikey"
    )
    assert Files(haystack="a.txt").spec("niah:b.txt") == "niah:b.txt"


def test_options_replace_fields_of_every_part():
    parts, _ = plans("small", {"budgets": (0.3,), "samples": 2, "seed": 9}, Files())
    assert [(part.budgets, part.samples, part.seed) for part in parts] == [((0.3,), 2, 9)] * 3
    assert parts[0].tasks == FAMILIES and parts[1].tasks == ("niah",) and parts[2].tasks == QUESTIONS


def test_named_tasks_run_as_in_their_part():
    parts, _ = plans("small", {"tasks": ("niah", "passkey", "vt", "niah:noise")}, Files())
    assert [part.tasks for part in parts] == [("passkey", "vt"), ("niah", "niah:noise")]
    assert parts[1].lengths == SUITES["small"][1].lengths
    parts, _ = plans("small", {"tasks": ("niah",)}, Files())
    assert [part.tasks for part in parts] == [("niah",)]


def test_the_command_names_the_suites():
    assert evaluate._SUITES == tuple(SUITES)


def test_unknown_names_fail():
    with pytest.raises(OptionError, match="--suite: expected one of standard, smoke, small, paper, got 'large'"):
        plans("large", {}, Files())
    with pytest.raises(OptionError, match="expected a task among"):
        plans("smoke", {"tasks": ("chess",)}, Files())
    with pytest.raises(OptionError, match="expected fields of a plan, got colour"):
        plans("smoke", {"colour": 1}, Files())
    assert all(task_class(task) for part in SUITES["paper"] for task in part.tasks)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--suite", "large"], "--suite: expected one of standard, smoke, small, paper, got 'large'"),
        (["--seed", "secret"], "--seed: expected development, report or a number, got 'secret'"),
        (["--depths", "0,120"], "--depths: expected percentages from 0 to 100, got 0,120"),
        (["--samples", "0"], "--samples: expected at least 1, got 0"),
        (["--chat", "loud"], "--chat: expected one of auto, chatml, plain, got 'loud'"),
        (["--tasks", "qa_1"], "expected qa_1:FILE, a SQuAD 2.0 JSON file, got qa_1 alone"),
        (["--tasks", "text:/nowhere/at/all"], "expected a UTF-8 text file, got /nowhere/at/all"),
    ],
)
def test_bad_arguments(tiny_model, tmp_path, capsys, arguments, message):
    fixed = ["eval", "-m", str(tiny_model("llama")), "-t", "1", "--out", str(tmp_path), "--suite", "smoke"]
    assert main([*fixed, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_chat_templates():
    assert from_template(LLAMA_2, "<s>", "</s>") == ChatFormat("[INST] ", " [/INST]")
    assert from_template("{{ '<|im_start|>' }}", "", "") == CHATML
    for template in ("{{ raise_exception('no') }}", "nothing", "{{ messages[0].content }}{{ messages[0].content }}"):
        with pytest.raises(OptionError, match="--chat: expected a chat template that writes one user turn"):
            from_template(template, "<s>", "</s>")
