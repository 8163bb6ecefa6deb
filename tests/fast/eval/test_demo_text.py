"""make_document: deterministic, within its token budget, one fact at the asked depth."""

from __future__ import annotations

import re

import pytest

from asl_gguf.errors import OptionError
from asl_gguf.eval.demo_text import make_document

_FACT = re.compile(r"The special magic number for ([a-z]+-[a-z]+) is: (\d{7})\.")


def _count_words(text: str) -> int:
    return len(text.split())


def _count_with_bos(text: str) -> int:
    """About as many tokens as a BPE tokenizer gives, with one special token in front."""
    return 1 + len(re.findall(r"\w{1,5}|[^\w\s]", text))


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)\s+", text)


def test_document_is_deterministic():
    assert make_document(_count_words, seed=3) == make_document(_count_words, seed=3)


def test_seeds_differ():
    first, second = (make_document(_count_words, seed=seed) for seed in (0, 1))
    assert first.answer != second.answer
    assert first.text != second.text


def test_known_start_of_seed_0():
    """The words must not change between Python versions: numbers of the demo rest on them."""
    document = make_document(_count_words, seed=0)
    assert document.answer == "7821589"
    assert document.text.startswith(
        "This is the logbook of the Gannet Rock light, kept for the harbour board.\n\n"
        "By breakfast on 1 March 1871 the wind had gone round to the east"
    )


@pytest.mark.parametrize("count_tokens", [_count_words, _count_with_bos])
@pytest.mark.parametrize("n_tokens", [40, 200, 777, 2000, 12_000])
@pytest.mark.parametrize("seed", [0, 7])
def test_token_count_is_at_most_one_sentence_below(count_tokens, n_tokens, seed):
    text = make_document(count_tokens, n_tokens=n_tokens, seed=seed).text
    longer = make_document(count_tokens, n_tokens=n_tokens + 100, seed=seed).text
    filler, more_filler = (
        [sentence for sentence in _sentences(t) if not _FACT.match(sentence)] for t in (text, longer)
    )
    assert more_filler[: len(filler)] == filler
    next_sentence = more_filler[len(filler)]
    assert count_tokens(text) <= n_tokens < count_tokens(text) + count_tokens(next_sentence) + 1


@pytest.mark.parametrize("seed", range(8))
def test_fact_question_and_answer_belong_together(seed):
    document = make_document(_count_words, seed=seed)
    topic, number = _FACT.search(document.text).groups()
    assert number == document.answer
    assert document.text.count(document.answer) == 1
    assert document.text.count(topic) == 1
    assert re.findall(r"\d{5,}", document.text) == [document.answer]
    assert document.answer not in document.question
    assert document.answer not in document.answer_prefix
    assert document.question == (f"What is the special magic number for {topic} mentioned in the provided text?")
    assert document.answer_prefix == (f"The special magic number for {topic} mentioned in the provided text is:")


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.35, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("n_tokens", [600, 2000])
def test_depth_is_respected(depth, n_tokens):
    text = make_document(_count_words, n_tokens=n_tokens, depth=depth).text
    fact = _FACT.search(text)
    before, after = _count_words(text[: fact.start()]), _count_words(text[fact.end() :])
    assert before / (before + after) == pytest.approx(depth, abs=0.05)
    if depth in (0.0, 1.0):
        assert (before if depth == 0.0 else after) == 0


@pytest.mark.parametrize("depth", [0.0, 0.35, 1.0])
def test_text_is_well_formed(depth):
    text = make_document(_count_words, n_tokens=5000, depth=depth).text
    assert text == text.strip()
    assert not re.search(r"[{}]|  |\n{3}|\.[A-Z]| \n", text)
    for sentence in _sentences(text):
        assert re.fullmatch(r"[A-Z0-9].*[a-z0-9]\.", sentence), sentence


def test_text_does_not_repeat_obviously():
    sentences = _sentences(make_document(_count_words, n_tokens=2000).text)
    assert len(set(sentences)) >= 0.99 * len(sentences)


def test_smallest_document_is_the_fact_alone():
    assert _FACT.fullmatch(make_document(_count_words, n_tokens=8).text)


def test_budget_below_the_fact_is_refused():
    with pytest.raises(OptionError, match=r"at least the hidden fact \(8 tokens\), got 7"):
        make_document(_count_words, n_tokens=7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_tokens": 0}, "expected n_tokens >= 1, got 0"),
        ({"depth": 35}, "expected depth between 0 and 1, got 35"),
        ({"depth": float("nan")}, "expected depth between 0 and 1, got nan"),
    ],
)
def test_options_outside_their_domain(options, message):
    with pytest.raises(OptionError, match=message):
        make_document(_count_words, **options)


def test_counter_that_does_not_count_is_refused():
    with pytest.raises(OptionError, match="at least one token per sentence"):
        make_document(lambda text: 0, n_tokens=50)
