"""The tasks of asl_gguf.eval: within their length, answerable, evenly deep, the same on every machine."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
import subprocess
import sys
from itertools import islice

import pytest

from asl_gguf.errors import OptionError
from asl_gguf.eval.tasks import (
    CHATML,
    DEVELOPMENT_SEED,
    PLAIN,
    REPORT_SEED,
    ChatFormat,
    Example,
    VariableTracking,
    make_task,
)
from asl_gguf.eval.tasks.haystacks import NOISE, context_maker, place, spread
from asl_gguf.eval.tasks.words import ADJECTIVES, NOUNS, keys, names, numbers, seeded, shuffled, uuids
from task_hashes import GENERATED as SHA256

IN_NOISE = ("niah_noise", "passkey", "number_string", "tracking")
IN_PROSE = ("niah_prose", "multikey", "multivalue")
IN_JSON = ("keyvalue", "uuid_kv")
SHOT_FORM = ("multikey", *IN_JSON)
ANSWERS_IN_CONTEXT = {"passkey": [2], "number_string": [2], "multivalue": [1] * 4, "tracking": [2, 1]}

every_task = pytest.mark.parametrize("name", SHA256)  # the others: test_eval_tasks_published.py and ..._files.py


@functools.lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """About as many tokens as a tokenizer with single digits gives."""
    return len(re.findall(r"<\|\w+\|>|\d|[^\W\d]{1,6}|[^\w\s]|\n", text))


def count_words(text: str) -> int:
    return len(text.split())


@functools.lru_cache(maxsize=4096)
def example(name: str, index: int = 0, n_tokens: int = 700, seed: int = DEVELOPMENT_SEED, chat=CHATML) -> Example:
    return make_task(name, count_tokens, n_tokens, index + 1, seed, chat).get_example(index)


def context_and_rest(made: Example) -> tuple[str, str]:
    """The text that holds the answers, and all of the prompt that follows it."""
    marker = {"tracking": "text.\n\n", "passkey": "there.\n", "number_string": "there.\n"}.get(
        made.task, "afterwards.\n"
    )
    start = 0 if made.task in SHOT_FORM else made.prompt.rindex(marker) + len(marker)
    end = made.prompt.rfind("\n\n") if made.task in SHOT_FORM else made.prompt.rfind(made.question)
    return made.prompt[start:end], made.prompt[end:]


@every_task
def test_longest_prompt_within_the_limit(name):
    """Raising the limit token by token meets each longer prompt exactly when it fits, one unit at a time."""
    made, n_changes = example(name, n_tokens=440), 0
    for limit in range(441, 540):
        longer = example(name, n_tokens=limit)
        assert longer.n_tokens == count_tokens(longer.prompt) <= limit
        if longer != made:
            assert longer.n_tokens == limit
            assert 0 < len(longer.prompt) - len(made.prompt) <= 150
            made, n_changes = longer, n_changes + 1
    assert n_changes >= 1


@every_task
@pytest.mark.parametrize("n_tokens", [250, 1500, 9000])
def test_any_counter_and_length(name, n_tokens):
    made = make_task(name, count_words, n_tokens, 1, 3).get_example(0)
    a_unit = 24  # words of the longest sentence
    assert n_tokens - a_unit < made.n_tokens == count_words(made.prompt) <= n_tokens


@every_task
def test_answers_stand_in_the_context_alone(name):
    for index in range(5):
        made = example(name, index)
        context, rest = context_and_rest(made)
        assert [context.count(answer) for answer in made.references] == ANSWERS_IN_CONTEXT.get(name, [1])
        assert [made.prompt.count(answer) for answer in made.references] == ANSWERS_IN_CONTEXT.get(name, [1])
        assert not any(answer in rest for answer in made.references)
        assert made.question in rest or made.prompt.endswith(made.question)


@every_task
def test_depths_are_as_stated(name):
    for n_tokens in [700, 3000]:
        for index in range(6):
            made = example(name, index, n_tokens)
            context, rest = context_and_rest(made)
            for shot in rest.split("\n")[:-1] if name in IN_JSON else ():
                context = context.replace(shot, "")
            for other in re.findall(r"One of the [^.]*\d{7}\.", context) if name == "multikey" else ():
                context = context.replace(other, other if made.references[0] in other else "")
            if name in IN_JSON:
                facts = [next(pair for pair in re.findall(r'"[^"]+": "[^"]+"', context) if made.references[0] in pair)]
            elif name == "tracking":
                facts = [re.search(rf"VAR {variable} = .*", context)[0] for variable in made.references]
            elif name in IN_NOISE:
                facts = [re.search(rf".*{made.references[0]}.*", context)[0]]
            else:
                facts = [re.search(rf"One of the [^.]*{number}\.", context)[0] for number in made.references]
            filler = len(context) - sum(map(len, facts))
            a_unit = 130 / filler  # the longest sentence
            assert len(made.depths) == len(made.references)
            for i, (fact, depth) in enumerate(zip(facts, made.depths)):
                before = context.index(fact) - sum(map(len, facts[:i]))
                assert before / filler == pytest.approx(depth, abs=a_unit)


@every_task
@pytest.mark.parametrize("seed", [DEVELOPMENT_SEED, REPORT_SEED])
def test_depths_are_spread_evenly(name, seed):
    """Over the first few examples, too, which another number of examples does not change."""
    task = make_task(name, count_words, 250, 50, seed)
    made = [task.get_example(index) for index in range(50)]
    n_references = len(made[0].references)
    for num_examples in (8, 20, 50):
        quarters = collections.Counter(int(4 * depth) for one in made[:num_examples] for depth in one.depths)
        assert sorted(quarters) == [0, 1, 2, 3]
        expected = num_examples * n_references / 4
        assert all(abs(n - expected) <= 2 * n_references for n in quarters.values()), num_examples


@every_task
def test_examples_are_deterministic(name):
    first, second = (make_task(name, count_tokens, 700, 4, 5) for _ in range(2))
    assert [first.get_example(i) for i in (0, 3)] == [second.get_example(i) for i in (0, 3)]


@every_task
def test_examples_are_known(name):
    """The text must not change between Python versions or releases: reported figures rest on it."""
    made = example(name, n_tokens=500)
    assert hashlib.sha256((made.prompt + made.reference_text).encode()).hexdigest() == SHA256[name]


def test_another_process_makes_the_same_examples():
    program = (
        "import json\nfrom asl_gguf.eval.tasks import *\n"
        f"print(json.dumps([make_task(t, lambda s: len(s.split()), 400, 9, 1).get_example(8).prompt for t in {list(SHA256)}]))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [make_task(t, count_words, 400, 9, 1).get_example(8).prompt for t in SHA256]


@every_task
def test_seeds_and_indices_differ(name):
    made = [example(name, index, seed=seed) for seed in (DEVELOPMENT_SEED, REPORT_SEED, 2) for index in range(6)]
    assert len({one.prompt for one in made}) == len({one.references for one in made}) == len(made)
    assert len({one.depths for one in made}) == len(made)


@every_task
def test_an_example_depends_on_seed_and_index_alone(name):
    """Other lengths and numbers of examples ask the same question."""
    short, long = example(name, 2, 500), example(name, 2, 2000)
    assert (short.question, short.reference_text, short.depths) == (long.question, long.reference_text, long.depths)
    assert make_task(name, count_tokens, 500, 99, DEVELOPMENT_SEED).get_example(2) == short


@every_task
def test_scores(name):
    task = make_task(name, count_tokens, 500, 2, 0)
    made, other = task.get_example(0), task.get_example(1)
    assert task.evaluate(made, made.reference_text) == 1.0
    assert task.evaluate(made, made.reference_text.swapcase() + "\nand more") == 1.0
    assert task.evaluate(made, "") == task.evaluate(made, other.reference_text) == 0.0
    assert task.evaluate(made, made.references[0][:-1]) == 0.0
    assert task.evaluate(made, f"It is {made.references[-1]}.") == 1 / len(made.references)


def test_scores_count_each_answer():
    for name, n in (("multivalue", 4), ("tracking", 2)):
        made = example(name)
        completions = [" ".join(made.references[:k]) for k in range(n + 1)]
        task = make_task(name, count_tokens, 700, 1, 0)
        assert [task.evaluate(made, completion) for completion in completions] == [k / n for k in range(n + 1)]


@every_task
@pytest.mark.parametrize("chat", [CHATML, PLAIN, ChatFormat("[INST] ", " [/INST]")])
def test_chat_formats(name, chat):
    made = example(name, chat=chat)
    if name in SHOT_FORM or name == "tracking":  # texts to go on with
        assert made == example(name)
        return
    assert made.prompt.startswith(chat.user_prefix)
    between = made.question + chat.assistant_prefix + ("" if chat is CHATML else " ")
    _, reply = made.prompt.rsplit(between, 1)
    assert re.match(r"(The|Answer:) [^\n]*(is|are):?$", reply)
    assert made.reference_text.startswith(" ") and not made.reference_text.endswith((" ", "\n"))


@every_task
def test_prompt_ends_where_the_answer_starts(name):
    made = example(name)
    assert not made.prompt.endswith((" ", "\n"))
    assert not made.reference_text.endswith((" ", "\n"))
    assert made.reference_text.startswith(" ") == (name not in IN_JSON)
    assert made.prompt.endswith('": "') == (name in IN_JSON)
    assert count_tokens(made.reference_text) < made.max_new_tokens


@pytest.mark.parametrize("name", SHOT_FORM)
def test_shots_repeat_two_other_facts(name):
    for index in range(4):
        context, rest = context_and_rest(example(name, index))
        *shots, question = rest.strip("\n").split("\n")
        assert len(shots) == len(set(shots)) == 2
        assert all(context.count(shot) == 1 for shot in shots)
        assert context.count(question) == 1 and not any(shot.startswith(question) for shot in shots)


@pytest.mark.parametrize("name", IN_JSON)
def test_json_objects_parse_and_have_different_keys_and_values(name):
    context, _ = context_and_rest(example(name, n_tokens=3000))
    pairs = json.loads(context, object_pairs_hook=list)
    assert len(pairs) == len({key for key, _ in pairs}) == len({value for _, value in pairs}) > 20
    form = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}" if name == "uuid_kv" else r"\d{7}"
    assert all(re.fullmatch(form, value) for _, value in pairs)


@pytest.mark.parametrize("name", IN_NOISE)
def test_noise_comes_in_whole_lines(name):
    context, _ = context_and_rest(example(name))
    lines = [line for line in context.splitlines() if line != NOISE]
    assert len(lines) == (2 if name == "tracking" else 1)


@pytest.mark.parametrize("name", IN_PROSE)
def test_prose_differs_between_examples(name):
    first, second = (set(re.split(r"(?<=\.)\s", example(name, index).prompt)) for index in range(2))
    assert len(first & second) < 0.4 * len(first)


def test_multikey_has_six_needles():
    context, _ = context_and_rest(example("multikey"))
    found = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", context)
    assert len({key for key, _ in found}) == len({number for _, number in found}) == len(found) == 6


def test_multivalue_lists_the_numbers_as_they_come():
    made = example("multivalue")
    context, _ = context_and_rest(made)
    assert tuple(re.findall(r"\d{7}", context)) == made.references
    assert made.reference_text == " {}, {}, {}, and {}".format(*made.references)


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_following_the_chain_gives_the_answer(hops):
    for index in range(3):
        made = VariableTracking(count_tokens, 900, 3, 0, hops=hops).get_example(index)
        worked, context = made.prompt.split("Memorize and track")[1:]
        for text in (worked, context):
            value = re.search(r"assigned the value (\d{5}) in", text)[1]
            found = {value: value}
            for variable, source in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text):
                found[variable] = found[source]
            variables = [variable for variable in found if variable != value]
            assert len(variables) == hops + 1
            if text is worked:
                assert text.endswith(f"they are: {' '.join(variables)}\n\n")
            else:
                assert tuple(variables) == made.references and made.reference_text == " " + " ".join(variables)


def test_number_strings_repeat_digits():
    for index in range(20):
        (digits,) = example("number_string", index, 400).references
        assert re.fullmatch(r"\d{10}", digits)
        assert len(re.findall(r"(\d)(?=\1)", digits)) >= 5


def test_an_unknown_task_is_refused():
    with pytest.raises(OptionError, match="expected a task among niah_noise, .*, got 'chess'; "):
        make_task("chess", count_tokens, 500, 1, 0)


@every_task
def test_a_limit_below_the_task_itself_is_refused(name):
    with pytest.raises(OptionError, match=rf"of {name} without .* \((\d+) tokens\), got 20; choose a larger") as raised:
        example(name, n_tokens=20)
    smallest = int(re.search(r"\((\d+) tokens", str(raised.value))[1])
    assert example(name, n_tokens=smallest).n_tokens == smallest
    with pytest.raises(OptionError, match=f"got {smallest - 1};"):
        example(name, n_tokens=smallest - 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_tokens": 0}, "expected n_tokens >= 1, got 0; "),
        ({"num_examples": 0}, "expected num_examples >= 1, got 0; "),
        ({"hops": 0}, "expected hops >= 1, got 0; "),
    ],
)
def test_options_outside_their_domain(options, message):
    with pytest.raises(OptionError, match=message):
        VariableTracking(**{"count_tokens": count_tokens, "n_tokens": 500, "num_examples": 1, "seed": 0, **options})


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_the_task_is_refused(index):
    with pytest.raises(OptionError, match=f"expected index between 0 and 3, got {index}; "):
        make_task("passkey", count_tokens, 500, 4, 0).get_example(index)


def test_place():
    units = ["aaaa", "bb", "cc"]
    assert place(units, [(0.0, "0"), (1.0, "1")]) == ["0", *units, "1"]
    assert place(units, [(0.24, "x")]) == ["x", *units]
    assert place(units, [(0.26, "x"), (0.25, "y")]) == ["aaaa", "y", "x", "bb", "cc"]
    assert place(units, [(0.5, "x"), (0.5, "y")]) == ["aaaa", "x", "y", "bb", "cc"]
    assert place([], [(0.9, "late"), (0.1, "early")]) == ["early", "late"]
    assert spread(0.75, 4) == [0.75, 0.0, 0.25, 0.5]
    context_of = context_maker(iter([" a", "\n\nb", " c"]), [(0.5, " x")])
    assert [context_of(n) for n in (2, 0, 3)] == ["a x\n\nb", "x", "a\n\nb x c"]


def test_words_are_plain_and_differ():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) > 90 and len(set(NOUNS)) == len(NOUNS) > 90
    assert all(re.fullmatch("[a-z]+", word) for word in ADJECTIVES + NOUNS)


def test_draws_do_not_repeat():
    made = list(islice(keys(seeded("a")), 20_000))  # more than there are pairs of words
    assert len(set(made)) == len(made) and {key.count("-") for key in made} == {1, 2}
    for source, n in ((numbers(seeded(1), 2), 90), (names(seeded(2), 1), 26), (uuids(seeded(3)), 500)):
        drawn = list(islice(source, n))
        assert len(set(drawn)) == len(drawn) == n
    assert sorted(shuffled(seeded(4), range(9))) == list(range(9))
