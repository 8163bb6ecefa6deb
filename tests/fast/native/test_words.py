"""Words of pre-tokenizers: std::regex's, without its stack and without its quadratic time."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.native.bindings import lib
from asl_gguf.native.vocabulary import load_model, tokenize
from harness import llama_cpp
from vocab_gguf import PRE_TOKENIZERS, write_vocabulary

RUNS = {
    "letters": "a", "capitals": "A", "blanks": " ", "dots": ".", "dashes": "-", "digits": "7", "newlines": "\n", "tabs": "\t",
    "CJK": "雪", "emoji": "\U0001f600", "accents": "\u0301",
}  # fmt: skip
ENDS = ("", "x", " ", "1")
"""what a run ends in: std::regex is quadratic before some of them"""
ALPHABET = "aabbcdezABCDEZ 019\t\n\r.,-'!/:()[]_$+|~stlIMG é雪の\u0301\u3000\U0001f600²"
EXPRESSIONS = (
    "a", "ab|a", "(?:a|b)+c", "a{2,3}b?", "[^a-c]+", "[a\\]\\-.]+", "\\s+(?!\\S)|\\s+", "(?=(\\d{3})+(?!\\d))", "\\s+$", "a*b*",
    "(a|ab)(c|bcd)(d*)", "[雪の]+", "x{0,2}y|\\d+?|", "a(?=b|$)", "(?!a)[ab]+", "[-a]+|[b-]+", "\\S\\d",
)  # fmt: skip


def words(text: str, expression: str, *, by_std: bool) -> list[int] | None:
    """Lengths; None: the expression is refused."""
    found = (ctypes.c_int32 * (2 * len(text) + 2))()
    n_words = lib.split_words(text.encode(), expression.encode(), by_std, found, len(found))
    return None if n_words < 0 else list(found[:n_words])


def drawn(rng: random.Random) -> str:
    """A text with runs."""
    letters = rng.sample(ALPHABET, rng.randint(1, len(ALPHABET)))
    return "".join(rng.choice(letters) * rng.choice((1, 1, 1, 2, 3, 9)) for _ in range(rng.randint(0, 30)))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_they_are_those_of_std_regex(expression):
    rng = random.Random(expression)
    for _ in range(150):
        text = drawn(rng)
        assert words(text, expression, by_std=False) == words(text, expression, by_std=True), text


def test_an_expression_that_is_none():
    for expression in ("(", "[a", "a{3", "*a"):
        assert words("text", expression, by_std=False) is None


@pytest.fixture(scope="module", params=PRE_TOKENIZERS, name="vocabulary")
def load_vocabulary(request, tmp_path_factory) -> Iterator[Any]:
    path = write_vocabulary(Path(tmp_path_factory.mktemp("vocabularies")) / "vocab.gguf", request.param)
    model = load_model(str(path), vocab_only=True)
    yield model
    llama_cpp.llama_model_free(model)


def test_every_pre_tokenizer_gives_its_tokens(vocabulary):
    rng, n_merged = random.Random(3), 0
    for _ in range(100):
        text = drawn(rng)
        ours = tokenize(vocabulary, text)
        lib.tokenize_by_std_regex(True)
        try:
            theirs = tokenize(vocabulary, text)
        finally:
            lib.tokenize_by_std_regex(False)
        assert ours == theirs, text
        n_merged += len(ours) < len(text.encode())
    assert n_merged > 50  # merges tell words apart


def in_little_stack(vocabulary: Any, text: str) -> tuple[list[int], int]:
    """Tokens and CPU nanoseconds in a thread with 256 KiB of stack: std::regex has room for some hundred characters there."""
    found: list[Any] = []
    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=lambda: found.extend((tokenize(vocabulary, text), time.thread_time_ns())))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return found[0], found[1]


@pytest.mark.long
def test_a_long_run_ends_nothing(vocabulary):
    """And the time grows with the text, whatever the run ends in; std::regex is quadratic before some ends."""
    for kind, run in RUNS.items():
        for i, n_characters in enumerate((3_000, 12_000, 12_000)):
            text = run * n_characters + ENDS[(len(kind) + i) % len(ENDS)]
            tokens, taken = in_little_stack(vocabulary, text)
            assert tokens and len(tokens) <= len(text.encode()) + 1, kind
            assert taken < 20_000 * len(text), kind  # 20 us a character; quadratic ones take over a second
