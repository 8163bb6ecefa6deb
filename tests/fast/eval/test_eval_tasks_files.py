"""Tasks that read a file of the user's: SQuAD, HotpotQA, InfiniteBench, haystacks, texts to go on with."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from asl_gguf.errors import OptionError
from asl_gguf.eval.tasks import PLAIN, label, make_task
from asl_gguf.eval.tasks import scoring as sc
from asl_gguf.eval.tasks.haystacks import file_units


def count(text: str) -> int:
    return len(text.split())


def write(path: Path, data: object) -> str:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(path)


@pytest.fixture
def squad(tmp_path) -> str:
    def paragraph(article: int, i: int) -> dict:
        text = f"Paragraph {article}.{i} " + "about something. " * 10 + f"The answer is Ans{article}x{i}."
        asked = {"question": f"What does {article}.{i} say?", "answers": [{"text": f"Ans{article}x{i}"}] * 2}
        never = {"question": "Never asked?", "is_impossible": True, "answers": []}
        return {"context": text, "qas": [asked | {"is_impossible": False}, never]}

    data = [{"title": str(a), "paragraphs": [paragraph(a, i) for i in range(4)]} for a in range(10)]
    return write(tmp_path / "squad.json", {"version": "v2.0", "data": data})


@pytest.fixture
def hotpot(tmp_path) -> str:
    rows = [
        {
            "question": f"Who is {i}?",
            "answer": f"Name{i}",
            "context": [[f"Title {i}.{k}", [f"Sentence of Name{i}. ", "More words."]] for k in range(3)],
        }
        for i in range(20)
    ]
    return write(tmp_path / "hotpot.json", rows)


def test_squad(squad):
    task = make_task(f"qa_1:{squad}", count, 400, 5, 0, PLAIN)
    assert len(task.indices(())) == 5
    for index in range(5):
        made = task.get_example(index)
        (answer,) = made.references
        documents = re.findall(r"Document (\d+):\n(.*)", made.prompt)
        assert [int(number) for number, _ in documents] == list(range(1, len(documents) + 1))
        own = [i for i, (_, text) in enumerate(documents) if answer in text]
        assert len(own) == 1 and made.prompt.count(answer) == 1 and answer not in made.question
        assert own[0] / (len(documents) - 1) == pytest.approx(made.depths[0], abs=1 / (len(documents) - 1))
        article = answer[3]
        assert sum(f"Paragraph {article}." in text for _, text in documents) == 4  # its own article first
        assert 400 - 30 < made.n_tokens == count(made.prompt) <= 400
        assert made.prompt.endswith(f"Question: {made.question} Answer:")
        assert task.evaluate(made, f"It is {answer.upper()}.") == 1.0 and task.evaluate(made, "Ans") == 0.0
        assert task.get_example(index) == made


def test_seeds_share_no_question(squad, hotpot):
    for spec in (f"qa_1:{squad}", f"qa_2:{hotpot}"):
        tasks = [make_task(spec, count, 300, 99, seed) for seed in (0, 1)]
        first, second = ({task.get_example(i).question for i in task.indices(())} for task in tasks)
        assert len(first) == len(second) >= 10 and not first & second


def test_hotpot(hotpot):
    task = make_task(f"qa_2:{hotpot}", count, 300, 5, 0)
    made = task.get_example(1)
    (answer,) = made.references
    assert len(re.findall(rf"of {answer}\.", made.prompt)) == 3 == len(made.depths)
    assert 300 - 20 < made.n_tokens <= 300
    with pytest.raises(OptionError, match="expected documents for prompts of 9000 tokens"):
        make_task(f"qa_2:{hotpot}", count, 9000, 5, 0).get_example(1)
    with pytest.raises(OptionError, match="expected an index below 10, the questions for this seed, got 10"):
        task.get_example(10)


@pytest.mark.parametrize(
    "task, content, message",
    [
        ("qa_1", "no json", "expected a JSON file"),
        ("qa_1", [{"question": "?"}], r"expected the form of SQuAD .* got something else \(TypeError"),
        ("qa_1", {"data": []}, "expected at least two questions with answers"),
        ("qa_2", {"data": []}, "expected the form of HotpotQA"),
        ("qa_2", "", "expected a text, got the empty file"),
        ("longbook_qa_eng", "[]\n", "expected one JSON object per line in .* got list in line 1"),
        ("longbook_qa_eng", '{"context": "a", "input": ""}\n', "got context, input in line 1; answer is missing"),
        ("niah_prose", " \n", "expected a text, got the empty file"),
        ("text", "Too short.", "expected a text of at least 256 words in .*, got 2"),
    ],
)
def test_files_of_another_form(tmp_path, task, content, message):
    path = write(tmp_path / "file", content)
    with pytest.raises(OptionError, match=message):
        make_task(f"{task}:{path}", count, 300, 1, 0).get_example(0)


@pytest.mark.parametrize("task", ["qa_1", "qa_2", "longbook_qa_eng", "niah", "text"])
def test_a_missing_file(tmp_path, task):
    with pytest.raises(OptionError, match=r"expected a UTF-8 text file, got .*nowhere.*check the path"):
        make_task(f"{task}:{tmp_path / 'nowhere'}", count, 300, 1, 0).get_example(0)


CONTEXT = "First words of the book. " + "middle " * 500 + "Last words of it."


@pytest.fixture
def lines(tmp_path):
    """`lines(answer, ...)`: a file of these answers, every second one of which belongs to seed 0."""
    names = itertools.count()  # files are read once

    def lines(*answers: object, options: list[str] = ()) -> str:
        rows = [
            {"id": i, "context": CONTEXT, "input": f"Who {i}?", "answer": answer, "options": list(options)}
            for i, answer in enumerate(answers)
        ]
        return write(tmp_path / f"{next(names)}.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")

    return lines


def test_infinitebench_questions(lines):
    task = make_task(f"longbook_qa_eng:{lines(['The old man', 'Santiago'], 'x', 'Ahab')}", count, 100, 5, 0, PLAIN)
    assert len(task.indices(())) == 2
    made = {one.references: one for one in map(task.get_example, task.indices(()))}[("The old man", "Santiago")]
    assert made.n_tokens == count(made.prompt) == 100  # the middle is cut out, word by word
    assert "First words of the book." in made.prompt and "Last words of it." in made.prompt
    assert made.prompt.endswith("\n\nQuestion: Who 0? Answer:") and made.reference_text == " The old man"
    assert task.evaluate(made, "old man") == 1.0 and task.evaluate(made, "an old woman") == 0.5
    assert task.evaluate(made, "Santiago!") == 1.0 and task.evaluate(made, "nobody") == 0.0


def test_a_context_that_fits_stays_whole(lines):
    made = make_task(f"longbook_sum_eng:{lines('A b c')}", count, 5000, 1, 0).get_example(0)
    assert CONTEXT in made.prompt and made.prompt.endswith("Summary:")


@pytest.mark.parametrize("name", ["longbook_choice_eng", "code_debug"])
def test_infinitebench_choices(lines, name):
    options = ["tea", "coffee", "milk", "water"]
    task = make_task(f"{name}:{lines(['milk'], options=options)}", count, 200, 1, 0)
    made = task.get_example(0)
    assert made.references == ("C",) and "\nC. milk\n" in made.prompt
    assert [task.evaluate(made, text) for text in (" C", " C. milk", " (C)", " B or C", " Coffee")] == [1, 1, 1, 0, 0]
    for answers, choices in ((["wine"], options), (["milk"], options[:3])):
        with pytest.raises(OptionError, match="expected four options and one of them as the answer"):
            make_task(f"{name}:{lines(answers, options=choices)}", count, 201, 1, 2).get_example(0)


def test_infinitebench_others(lines):
    task = make_task(f"longdialogue_qa_eng:{lines(['BRUCE', 'WAYNE'])}", count, 200, 1, 0)
    assert task.evaluate(task.get_example(0), " Bruce, I think") == 1.0
    task = make_task(f"longbook_qa_chn:{lines('曹雪芹')}", count, 200, 1, 0)
    assert task.get_example(0).prompt.endswith("答案：")
    assert task.evaluate(task.get_example(0), "曹雪。") == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["qa_1", "qa_2", "longbook_qa_eng", "longbook_sum_eng", "text"])
def test_longest_prompt_within_the_limit(name, squad, hotpot, lines, tmp_path):
    """Raising the limit token by token meets each longer prompt exactly when it fits, one unit at a time."""
    files = {"qa_1": squad, "qa_2": hotpot, "text": write(tmp_path / "a.txt", " ".join(f"w{i}" for i in range(3000)))}
    spec = f"{name}:{files.get(name) or lines('Ahab')}"
    a_unit = 32 if name.startswith("qa") else 1  # words of a document; a word
    made, n_changes = make_task(spec, count, 199, 1, 0).get_example(0), 0
    for limit in range(200, 270):
        longer = make_task(spec, count, limit, 1, 0).get_example(0)
        assert longer.n_tokens == count(longer.prompt) <= limit
        assert (longer.question, longer.references) == (made.question, made.references)
        if longer.prompt != made.prompt:
            assert longer.n_tokens == limit and 0 < longer.n_tokens - made.n_tokens <= a_unit
            made, n_changes = longer, n_changes + 1
    assert n_changes >= 2


def test_scores():
    assert sc.rouge_l("the cat sat on the mat", "the cat lay on a mat") == pytest.approx(2 * 4 / 12)
    assert sc.rouge_l("a b", "c d") == 0.0 and sc.rouge_l("A b!", "a B") == 1.0
    assert sc.token_f1("the Eiffel tower", "Eiffel Tower in Paris") == pytest.approx(2 * 2 / 6)
    assert sc.first_number("is 3.50 or 4") == "3.50" and sc.first_number("none") is None
    assert sc.last_integer("x = 4 - 9 gives -5.") == "-5" and sc.last_integer("none") is None
    assert sc.any_found(("a", "bc"), "BCd") == 1.0


TEXT = "\n\n".join(f"This is sentence {i} of the file. And another, number {i}!" for i in range(300))


@pytest.mark.parametrize("task", ["niah", "niah_prose", "multikey", "multivalue", "niah_multiquery", "niah_single_3"])
def test_a_text_file_is_the_haystack(tmp_path, task):
    spec = f"{task}:{write(tmp_path / 'essays.txt', TEXT)}"
    assert label(spec) == f"{task}:essays.txt"
    made = make_task(spec, count, 900, 1, 0).get_example(0)
    assert "This is sentence 0 of the file. " in made.prompt and "logbook" not in made.prompt
    assert 900 - 8 < made.n_tokens <= 900
    assert all(made.prompt.count(answer) == 1 for answer in made.references)
    longer = make_task(spec, count, 8000, 1, 0).get_example(0)
    assert longer.prompt.count("This is sentence 7 of") > 1  # the file starts over


def test_units_of_a_file(tmp_path):
    text = "One. Two\nwords! " + "long " * 100 + "\n\nEnd"
    units = file_units(write(tmp_path / "a.txt", text))
    assert "".join(units) == " " + text and units[:2] == [" One.", " Two\nwords!"] and units[-1].endswith("\n\nEnd")
    assert max(map(len, units)) < 135


def test_a_text_to_go_on_with(tmp_path):
    text = " ".join(f"w{i}" for i in range(3000))
    path = write(tmp_path / "a.txt", text)
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    for seed, words in seen.items():
        task = make_task(f"text:{path}", count, 500, 8, seed)
        for index in range(8):
            made = task.get_example(index)
            assert made.n_tokens == 500 and count(made.reference_text) == 64
            assert made.prompt + made.reference_text in text
            assert int(made.reference_text.split()[0][1:]) >= 1500
            words |= set(made.reference_text.split())
    assert not seen[0] & seen[1]
    with pytest.raises(OptionError, match="expected 2990 tokens before the middle of"):
        make_task(f"text:{path}", count, 2990, 1, 0).get_example(0)
