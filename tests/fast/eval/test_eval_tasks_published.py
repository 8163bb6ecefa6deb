"""RULER's, NIAH's and InfiniteBench's generated tasks by their own definitions: length, answers, depths, scores."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from asl_gguf.errors import OptionError
from asl_gguf.eval.tasks import ALIASES, CHATML, DEVELOPMENT_SEED, PLAIN, TASKS, Example, make_task, task_class
from asl_gguf.eval.tasks.infinitebench import _WANTED
from task_hashes import PUBLISHED as SHA256

NEEDLES = ("niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multiquery", "niah")
N_NEEDLES = {"niah_multikey_1": 4, "niah_multiquery": 4}
LONGEST_UNIT = {"niah_multikey_3": 140, "math_find": 18, "fwe": 40}
"""characters; a UUID needle, two numbers, a word or a few of the coded text; else 130, the longest sentence"""

every_task = pytest.mark.parametrize("name", SHA256)


@functools.lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """About as many tokens as a tokenizer with single digits gives."""
    return len(re.findall(r"<\|\w+\|>|\d|[^\W\d]{1,6}|[^\w\s]|\n", text))


@functools.lru_cache(maxsize=4096)
def example(name: str, index: int = 0, n_tokens: int = 1500, seed: int = DEVELOPMENT_SEED, chat=CHATML) -> Example:
    return make_task(name, count_tokens, n_tokens, index + 1, seed, chat).get_example(index)


def context_of(made: Example) -> str:
    """The prompt from the end of its instruction to the last question."""
    end = made.prompt.rindex(made.question)
    marker = "hidden in the following text.\n\n" if made.task == "vt" else "afterwards.\n"
    return made.prompt[made.prompt.rfind(marker) + len(marker) if marker in made.prompt else 0 : end]


@every_task
def test_examples_are_known(name):
    """The text must not change between Python versions or releases: reported figures rest on it."""
    made = example(name)
    assert hashlib.sha256((made.prompt + made.reference_text).encode()).hexdigest() == SHA256[name]


def test_another_process_makes_the_same_examples():
    program = (
        "import json\nfrom asl_gguf.eval.tasks import make_task\n"
        f"print(json.dumps([make_task(t, lambda s: len(s.split()), 900, 9, 1).get_example(8).prompt for t in {list(SHA256)}]))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    ours = [make_task(t, lambda s: len(s.split()), 900, 9, 1).get_example(8).prompt for t in SHA256]
    assert json.loads(printed) == ours


@every_task
def test_longest_prompt_within_the_limit(name):
    """Raising the limit token by token meets each longer prompt exactly when it fits, one unit at a time."""
    made, n_changes = example(name, n_tokens=1400), 0
    n_limits = 110 if name in ("niah_multikey_3", "kv_retrieval", "vt") else 40  # tokens of a unit
    for limit in range(1401, 1401 + n_limits):
        longer = example(name, n_tokens=limit)
        assert longer.n_tokens == count_tokens(longer.prompt) <= limit
        if longer != made:
            assert longer.n_tokens == limit
            assert 0 < len(longer.prompt) - len(made.prompt) <= LONGEST_UNIT.get(name, 130)
            made, n_changes = longer, n_changes + 1
    assert n_changes >= 1


@every_task
@pytest.mark.parametrize("n_tokens", [900, 5000])
def test_any_counter_and_length(name, n_tokens):
    made = make_task(name, lambda text: len(text.split()), n_tokens, 1, 3).get_example(0)
    a_unit = 24  # words of the longest sentence
    assert n_tokens - a_unit < made.n_tokens == len(made.prompt.split()) <= n_tokens


@every_task
def test_an_example_depends_on_seed_and_index_alone(name):
    short, long = example(name, 2, 1500), example(name, 2, 3900)
    assert (short.question, short.reference_text, short.depths) == (long.question, long.reference_text, long.depths)
    for num_examples in (3, 99):
        assert make_task(name, count_tokens, 1500, num_examples, DEVELOPMENT_SEED).get_example(2) == short
    assert len({example(name, index, seed=seed).prompt for index in range(3) for seed in range(3)}) == 9


@every_task
def test_no_answer_in_the_question(name):
    for index in range(4):
        made = example(name, index)
        tail = made.prompt[made.prompt.rindex(made.question) :]
        assert made.references and not any(answer in tail for answer in made.references)


@every_task
def test_scores(name):
    task = make_task(name, count_tokens, 1500, 2, 0)
    made, other = task.get_example(0), task.get_example(1)
    assert task.evaluate(made, made.reference_text) == 1.0
    assert task.evaluate(made, "") == task.evaluate(made, "no idea") == 0.0
    assert task.evaluate(made, other.reference_text) == 0.0


@every_task
@pytest.mark.parametrize("chat", [CHATML, PLAIN])
def test_chat_formats_and_answer_prefixes(name, chat):
    made = example(name, chat=chat)
    assert made.prompt.startswith(chat.user_prefix) or name == "vt"
    assert re.search(r"(The|Answer:) [^\n]*(is|are):?$", made.prompt)
    assert made.reference_text.startswith(" ") and not made.reference_text.endswith((" ", "\n"))
    assert count_tokens(made.reference_text) < 1.5 * made.max_new_tokens


@pytest.mark.parametrize("name", NEEDLES)
def test_needles(name):
    """As many as defined, each answer once, at its depth within one unit of the haystack."""
    for index in range(3):
        made = example(name, index, 3000)
        context = context_of(made)
        kind = "uuid" if name in ("niah_single_3", "niah_multikey_3") else "number"
        found = re.findall(rf"One of the special magic {kind}s for (\S+) is: (\S+)\.", context)
        assert len(set(found)) == len(found)
        if name in ("niah_multikey_2", "niah_multikey_3"):
            assert len(found) == len(context.strip().splitlines()) > 20
        else:
            assert len(found) == N_NEEDLES.get(name, 1)
        values = [value for _, value in found]
        asked = [key for key, value in found if value in made.references]
        assert all(values.count(answer) == made.prompt.count(answer) == 1 for answer in made.references)
        assert all(key in made.question for key in asked) and len(asked) == len(made.references) == len(made.depths)
        own = [
            f"One of the special magic {kind}s for {key} is: {value}." for key, value in found if key in made.question
        ]
        others = [] if len(found) > 10 else [text for text in found if text[0] not in made.question]
        drop = [*own, *(f"One of the special magic {kind}s for {key} is: {value}." for key, value in others)]
        filler = len(context) - sum(map(len, drop))
        for answer, depth in zip(made.references, made.depths):
            at = context.index(answer)
            before = at - sum(len(text) for text in drop if context.index(text) < at)
            assert before / filler == pytest.approx(depth, abs=140 / filler)


def test_multiquery_answers_in_the_order_of_the_question():
    made = example("niah_multiquery")
    value_of = dict(re.findall(r"numbers for (\S+) is: (\d+)\.", made.prompt))
    asked = re.findall(r"[a-z]+-[a-z]+", made.question)
    assert tuple(value_of[key] for key in asked) == made.references
    assert made.reference_text == " {}, {}, {}, and {}".format(*made.references)


def test_the_grid_of_depths():
    task = make_task("niah", count_tokens, 2000, 2, 0)
    indices = task.indices((0, 50, 100))
    assert list(indices) == [0, 50, 100, 101, 151, 201]
    made = [task.get_example(index) for index in indices]
    assert [one.depths for one in made] == [(0.0,), (0.5,), (1.0,)] * 2
    assert len({one.references for one in made}) == 6
    assert context_of(made[0]).startswith("One of the special magic numbers")
    assert context_of(made[2]).rstrip().endswith(f"{made[2].references[0]}.")
    with pytest.raises(OptionError, match="expected index between 0 and 201, got 202"):
        task.get_example(202)
    other = make_task("passkey", count_tokens, 2000, 3, 0)
    assert list(other.indices((0, 50, 100))) == [0, 1, 2]


def test_haystacks_of_the_grid():
    noise = make_task("niah:noise", count_tokens, 800, 1, 0).get_example(30)
    lines = context_of(noise).strip().splitlines()
    assert len(set(lines)) == 2
    (place,) = (i for i, line in enumerate(lines) if "magic" in line)
    assert place == pytest.approx(0.3 * (len(lines) - 1), abs=1)


@pytest.mark.parametrize("n_tokens, n_common, n_other", [(1500, 6, 1), (4096, 30, 3)])
def test_common_words(n_tokens, n_common, n_other):
    for index in range(4):
        made = example("cwe", index, n_tokens)
        worked, listed = made.prompt.split("Below is a numbered list")[1:]
        for text, common, n, m in (
            (listed, set(made.references), n_common, n_other),
            (
                worked,
                set(re.findall(r"\d+\. (\S+)", worked.split("list are:")[1])),
                *((10, 3) if n_common == 30 else (3, 1)),
            ),
        ):
            entries = re.findall(r"(\d+)\. (\S+)", text.split("Question:")[0])
            assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
            counts = Counter(word for _, word in entries)
            assert len(common) == 10 and {counts[word] for word in common} == {n}
            assert {count for word, count in counts.items() if word not in common} == {m}
        assert not set(made.references) & set(re.findall(r"\d+\. (\S+)", worked))


@pytest.mark.parametrize("n_tokens", [230, 260, 330, 700, 5000])
def test_frequent_words(n_tokens):
    for index in range(3):
        made = example("fwe", index, n_tokens)
        text = made.prompt.split("coded words. ", 1)[1].split("\nQuestion")[0]
        ranked = Counter(text.split()).most_common()
        assert ranked[0][0] == "..."
        assert tuple(word for word, _ in ranked[1:4]) == made.references
        assert all(first > second for (_, first), (_, second) in pairwise(ranked[:5]))


def test_math_find():
    for index in range(12):
        made = example("math_find", index)
        listed = json.loads(re.search(r"\[.*\]", made.prompt)[0])
        assert len(set(listed)) == len(listed) and len(listed) % 2 == 1
        ordered = sorted(listed)
        wanted = re.search(r"What is the (.*) of the list", made.question)[1]
        by_rank = [*ordered[:3], ordered[len(ordered) // 2], *ordered[-3:]]
        assert int(made.references[0]) == by_rank[_WANTED.index(wanted)]
        assert listed.index(int(made.references[0])) / len(listed) == pytest.approx(made.depths[0], abs=8 / len(listed))
        task = make_task("math_find", count_tokens, 900, 1, 0)
        assert task.evaluate(made, f" {made.references[0]}, I think, not 5") == 1.0
        assert task.evaluate(made, f" 5 or {made.references[0]}") == 0.0


def test_math_find_asks_for_all_seven():
    assert {
        re.search(r"What is the (.*) of the list", example("math_find", i, 700).question)[1] for i in range(40)
    } == {*_WANTED}


def test_code_run():
    """Running the program gives the answer, and calls as many functions as there are depths."""
    for index in range(12):
        made = example("code_run", index)
        functions = {}
        program = re.search(r"def .*(?=\n\nPlease)", made.prompt, re.DOTALL)[0]
        exec(program, functions)
        call = re.search(r"func_\d+\(\d+\)", made.question)[0]
        assert str(eval(call, functions)) == made.references[0]
        body = dict(re.findall(r"def (func_\d+)\(x\):\n    return (\S+)", program))
        name, n_calls = call.split("(")[0], 1
        while "func" in body[name]:
            name, n_calls = body[name].split("(")[0], n_calls + 1
        assert n_calls == len(made.depths) and 2 <= n_calls <= 10
        assert len(re.findall("^def ", program, re.MULTILINE)) == len(body) > n_calls
        task = make_task("code_run", count_tokens, 900, 1, 0)
        assert task.evaluate(made, f" 12 + 5 = {made.references[0]}.") == 1.0
        assert task.evaluate(made, f" {made.references[0]}, then 17") == 0.0


def test_kv_retrieval():
    made = example("kv_retrieval", 1)
    pairs = json.loads(re.search(r"\{.*\}", made.prompt)[0])
    key = re.search(r'"(.*)"', made.question)[1]
    assert pairs[key] == made.references[0] and len(pairs) > 10
    assert made.prompt.count(made.references[0]) == 1
    task = make_task("kv_retrieval", count_tokens, 900, 1, 0)
    assert task.evaluate(made, f' "{made.references[0]}",') == 1.0
    assert task.evaluate(made, made.references[0] + "0") == 0.0


def test_vt_has_four_hops():
    made = example("vt")
    assert len(made.references) == 5
    assert [made.prompt.count(f"VAR {name}") for name in made.references] == [2, 2, 2, 2, 1]


def test_rulers_thirteen_names_are_known():
    names = [f"niah_single_{i}" for i in (1, 2, 3)] + [f"niah_multikey_{i}" for i in (1, 2, 3)]
    for name in [*names, "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"]:
        assert task_class(name) is TASKS[ALIASES.get(name, name)]
    assert example("niah_single_1") == example("niah_noise")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("niah_multikey_2:a.txt", "expected niah_multikey_2 alone, got niah_multikey_2:a.txt; it reads no file"),
        ("passkey:noise", "expected passkey alone"),
        ("text", "expected text:FILE, a text file, got text alone; name the file"),
        ("longbook_qa_eng", "expected longbook_qa_eng:FILE, longbook_qa_eng.jsonl of InfiniteBench, got"),
        ("cwe2", "expected a task among niah_noise, .*, got 'cwe2'"),
    ],
)
def test_bad_names(spec, message):
    with pytest.raises(OptionError, match=message):
        make_task(spec, count_tokens, 1500, 1, 0)


@every_task
def test_a_limit_below_the_task_itself_is_refused(name):
    with pytest.raises(OptionError, match=rf"of {name} without .* \((\d+) tokens\), got 20; choose a larger"):
        example(name, n_tokens=20)
