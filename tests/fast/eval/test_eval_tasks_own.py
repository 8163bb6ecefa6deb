"""The tasks that are ours: gists, facts put together, code, tables. Answerable, within their length, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from asl_gguf.errors import OptionError
from asl_gguf.eval.tasks import CHATML, DEVELOPMENT_SEED, PLAIN, REPORT_SEED, ChatFormat, Example, make_task
from asl_gguf.eval.tasks.subject_words import MOODS, SUBJECTS
from task_hashes import OWN as SHA256

SUBJECT_TASKS = ("gist", "topics", "tone")
LOOK_UPS = ("function", "identifier", "table", "records")
WITHOUT_CHAT = ("turns", *LOOK_UPS)

every_task = pytest.mark.parametrize("name", SHA256)


def count_tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def example(name: str, index: int = 0, n_tokens: int = 600, seed: int = DEVELOPMENT_SEED, chat=CHATML) -> Example:
    return make_task(name, count_tokens, n_tokens, index + 1, seed, chat).get_example(index)


@every_task
@pytest.mark.parametrize("n_tokens", [250, 600, 3000])
def test_the_longest_prompt_within_the_limit(name, n_tokens):
    made = example(name, n_tokens=n_tokens)
    a_unit = 40  # the longest sentence, function, row or record
    assert n_tokens - a_unit < made.n_tokens == count_tokens(made.prompt) <= n_tokens


@every_task
def test_examples_are_known(name):
    made = example(name, n_tokens=500)
    assert hashlib.sha256((made.prompt + made.reference_text).encode()).hexdigest() == SHA256[name]


@every_task
def test_seeds_and_indices_differ(name):
    made = [example(name, index, seed=seed) for seed in (DEVELOPMENT_SEED, REPORT_SEED) for index in range(6)]
    assert len({one.prompt for one in made}) == len(made)
    assert len({one.references for one in made}) > 3 or name == "tone"


@every_task
def test_an_example_depends_on_seed_and_index_alone(name):
    short, long = example(name, 2, 400), example(name, 2, 2000)
    assert (short.question, short.reference_text, short.depths) == (long.question, long.reference_text, long.depths)


@every_task
def test_scores(name):
    task = make_task(name, count_tokens, 500, 9, 0)
    made = task.get_example(0)
    assert task.evaluate(made, made.reference_text) == 1.0
    assert task.evaluate(made, "") == task.evaluate(made, "I do not know.") == 0.0
    others = [task.get_example(index) for index in range(1, 9)]
    assert min(task.evaluate(made, other.reference_text) for other in others) < 1.0


@every_task
def test_prompts_end_where_answers_start(name):
    made = example(name)
    assert not made.prompt.endswith((" ", "\n")) and not made.reference_text.endswith((" ", "\n"))
    assert made.reference_text.startswith(" ") == (name != "rule")
    assert count_tokens(made.reference_text) < made.max_new_tokens
    assert made.question in made.prompt


@every_task
@pytest.mark.parametrize("chat", [PLAIN, ChatFormat("[INST] ", " [/INST]")])
def test_chat_formats(name, chat):
    made = example(name, chat=chat)
    if name in WITHOUT_CHAT:
        assert made == example(name)
    else:
        assert made.prompt.startswith(chat.user_prefix) and made.question + chat.assistant_prefix in made.prompt


@pytest.mark.parametrize("name", ["gist", "topics", "tone"])
def test_answers_stand_nowhere_in_the_text(name):
    for index in range(8):
        made = example(name, index)
        text = made.prompt.partition(made.question)[0]
        names = made.references if name == "topics" else (made.reference_text.strip(),)
        assert not any(re.search(rf"\b{one.removeprefix('a ')}\b", text) for one in names)


def test_subjects_share_no_sign_and_no_act():
    for one in SUBJECTS:
        assert one.signs[0] == one.name.removeprefix("a ")
        for other in SUBJECTS:
            if other is not one:
                assert not set(one.signs) & set(other.signs) and not set(one.acts) & set(other.acts)
    ends = [end for mood in MOODS.values() for end in mood]
    assert len(ends) == len(set(ends))


def test_a_text_has_all_of_its_subjects_from_start_to_end():
    made = example("topics", n_tokens=900)
    sections = made.prompt.partition("about it.\n\n")[2].partition(f"\n\n{made.question}")[0].split("\n\n")
    assert len(sections) == 3
    for section, name in zip(sections, made.references):
        (own,) = [one for one in SUBJECTS if one.name == name]
        assert sum(act in section for act in own.acts) > 4
        assert not any(act in section for one in SUBJECTS if one is not own for act in one.acts)


def test_two_sentences_of_three_show_the_mood():
    made = example("tone", n_tokens=3000)
    sentences = made.prompt.partition("about it.\n\n")[2].partition(f"\n\n{made.question}")[0].count(".")
    shown = sum(made.prompt.count(end) for end in MOODS[made.references[0]])
    assert 0.55 < shown / sentences < 0.78


def test_facts_that_are_put_together_are_true():
    for index in range(5):
        made = example("sum", index)
        numbers = [int(n) for n in re.findall(r"[A-Z]\w+ sold (\d+) ", made.prompt)]
        assert made.reference_text == f" {' + '.join(map(str, numbers))} = {sum(numbers)}"
        made = example("compare", index)
        owned = {name: int(n) for name, n in re.findall(r"([A-Z]\w+) owns (\d+) ", made.prompt)}
        assert len(owned) == 2 and made.references[2] == f"{max(owned, key=owned.__getitem__)} owns more"
        assert set(made.references[:2]) == {str(n) for n in owned.values()}


def test_a_rule_comes_first_and_its_words_stand_nowhere_else():
    for index in range(5):
        made = example("rule", index)
        before = made.prompt.partition(f'"{made.references[0]}"')[0]
        assert made.prompt.count(made.references[0]) == 1 and count_tokens(before) < 60


def test_earlier_turns_said_it_once():
    for index in range(5):
        made = example("turns", index)
        said = dict(re.findall(r"my (\w+) is called (\w+)\.", made.prompt))
        assert len(said) == len(set(said.values())) == 3
        asked = re.search(r"What is my (\w+) called", made.question)[1]
        assert made.references == (said[asked],) and made.prompt.count(said[asked]) == 1


@pytest.mark.parametrize("name", LOOK_UPS)
def test_look_ups_show_two_other_answers(name):
    for index in range(5):
        made = example(name, index)
        context, _, rest = made.prompt.rpartition("\n\n")
        *shots, question = rest.split("\n")
        assert len(shots) == len(set(shots)) == 2 and question == made.question and question not in shots
        (key,) = re.findall(r"[A-Za-z]+[-_][A-Za-z]+", question)
        assert context.count(key) == 1
        (entry,) = [line for line in context.split("\n\n" if name == "function" else "\n") if key in line]
        assert made.references[0] in entry


def test_records_are_json():
    context = example("records").prompt.rpartition("\n\n")[0]
    assert len({record["owner"] for record in json.loads(context)}) > 10


@every_task
def test_a_limit_below_the_task_itself_is_refused(name):
    with pytest.raises(OptionError, match=rf"of {name} without .* \((\d+) tokens\), got 9; choose a larger"):
        example(name, n_tokens=9)
