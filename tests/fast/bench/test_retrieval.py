"""bench/retrieval.py: passages cover the document, keep its order and never exceed what they may take."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asl_gguf.errors import OptionError
from asl_gguf.eval.results import Results
from asl_gguf.eval.suites import FAMILIES, QUESTIONS
from asl_gguf.eval.tasks import PLAIN, REPORT_SEED, make_task
from asl_gguf.native.model import ContextOptions, Model


def _script(name: str) -> ModuleType:
    """A file of bench/ as the module that others there import."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[3] / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


passages, retrieval = _script("passages"), _script("retrieval")

texts = st.text(alphabet="ab .,!?\n", max_size=300)
sizes = st.integers(1, 40)
FAMILIES_OF_QUESTIONS = (*FAMILIES, "niah_noise", *QUESTIONS)
NOT_IN_THE_TEXT = {"gist", "topics", "tone", "compare", "sum"}
"""families some of whose answers stand nowhere"""


def count(text: str) -> int:
    """Words and signs: no sum of two texts' counts where a word is cut in two, as with a model's tokens."""
    return len(re.findall(r"\w+|\S", text))


@given(texts, sizes)
def test_passages_cover_the_document(text, most):
    cut = passages.cut(text, most, count)
    assert "".join(cut) == text
    assert all(cut)


@given(texts, sizes)
def test_passages_hold_no_more_than_they_may_but_for_long_words(text, most):
    for one in passages.cut(text, most, count):
        assert count(one) <= most or len(one.split()) == 1


def test_passages_end_where_paragraphs_lines_and_sentences_do():
    text = "One two. Three four.\n\nFive six. Seven, eight nine."
    assert passages.cut(text, 6, count) == ["One two. Three four.", "\n\nFive six.", " Seven, eight nine."]
    assert passages.cut(text, 12, count) == ["One two. Three four.", "\n\nFive six. Seven, eight nine."]
    assert passages.cut("a = 1\nb = 2\nc = 3", 7, count) == ["a = 1\nb = 2", "\nc = 3"]
    assert passages.cut('"a": "1", "b": "2"', 8, count) == ['"a": "1",', ' "b": "2"']


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(0, 60), st.randoms(use_true_random=False))
def test_what_is_taken_stands_in_order_and_never_exceeds_the_budget(lengths, budget, random):
    cut = [f" {i}" * n for i, n in enumerate(lengths)]
    order = random.sample(range(len(cut)), len(cut))
    taken = passages.take(cut, order, budget, count)
    assert count(taken) <= budget
    places = [int(one) for one in taken.split()]
    assert places == sorted(places)
    left_out = [n for i, n in enumerate(lengths) if i not in places]
    assert all(places.count(i) == lengths[i] for i in places)
    assert all(count(taken) + n > budget for n in left_out), "a passage that fits is taken"


@given(texts, sizes, sizes)
def test_no_cut_text_exceeds_the_budget(text, most, budget):
    cut = passages.cut(text, most, count)
    assert count(passages.take(cut, passages.from_ends(len(cut)), budget, count)) <= budget


def test_the_best_passages_come_first_and_smaller_ones_fill_what_is_left():
    cut = ["a b c ", "d e f ", "g h ", "i "]
    assert passages.take(cut, [2, 1, 0, 3], 6, count) == "d e f g h i "
    assert passages.take(cut, [0, 1, 2, 3], 100, count) == "".join(cut)
    assert passages.take(cut, [0, 1, 2, 3], 0, count) == ""


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_ends_come_before_the_middle(n):
    order = passages.from_ends(n)
    assert sorted(order) == list(range(n))
    assert order[:3] == [0, n - 1, 1][:n]


@pytest.mark.parametrize("name", FAMILIES_OF_QUESTIONS)
def test_the_document_of_every_family_is_found(name):
    task = make_task(name, count, 700, 3, REPORT_SEED)
    for index in range(3):
        example = task.get_example(index)
        before, document, after = passages.parts(example)
        assert before + document + after == example.prompt
        assert example.question in after
        assert document.strip() == document
        assert count(document) > count(example.prompt) / 2
        if name not in NOT_IN_THE_TEXT:
            assert all(reference in document for reference in example.references)


def test_a_task_without_a_question_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 1000)
    example = make_task(f"text:{tmp_path / 'text.txt'}", count, 300, 1, REPORT_SEED).get_example(0)
    with pytest.raises(OptionError, match="asks about a text, got text"):
        passages.parts(example)


def test_bm25_finds_the_words_of_the_question():
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    cut = ["The cat sleeps.", " Dogs are barking.", " A boat sails."]
    assert passages.by_bm25("Which dog barks?", cut)[0] == 1
    assert passages.by_bm25("Unheard of", cut) == [0, 1, 2]
    assert passages.by_bm25("the", ["the", "of"]) == [0, 1]


def test_every_way_answers_every_prompt_once(tiny_model, tmp_path):
    models = {kind: Model(str(tiny_model("llama")), ContextOptions(n_threads=1)) for kind in (None, "q8_0")}
    wanted = retrieval.ways([0.2], False, ["q8_0"])
    shorten = retrieval.Shortener(
        {"bm25": lambda question, cut: list(range(len(cut)))}, 40, lambda text: len(models[None].tokenize_plain(text))
    )
    plan = retrieval.Plan(("passkey", "gist"), 480, 1, REPORT_SEED, PLAIN)
    for _ in range(2):  # the second time there is nothing left to do
        results = Results(tmp_path)
        retrieval.run(models, plan, wanted, shorten, results)
    assert len(results.rows) == 2 * len(wanted)
    for row in results.rows:
        assert row["evaluated_tokens"] <= row["prompt_tokens"]
        if row["policy"] == "asl-span":
            assert row["budget_tokens"] < row["evaluated_tokens"] == row["prompt_tokens"]
        if row["policy"] == "bm25":
            assert row["budget_tokens"] == row["evaluated_tokens"] < row["prompt_tokens"]
    lines = retrieval.table(results.rows).splitlines()
    assert len(lines) == 2 + len(wanted)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "No prompt" in retrieval.table(results.rows[1:5])
    for model in models.values():
        model.close()
