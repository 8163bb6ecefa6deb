"""What the page at /asl shows of the last answers."""

from __future__ import annotations

import json

import pytest

from asl_gguf.report import PrefillReport
from asl_gguf.server import answers as module
from asl_gguf.server.answers import DROPPED, KEPT, UNKNOWN, Answers
from asl_gguf.server.totals import Totals

PIECES = [b"a", b"b", b" c", b"\xe2\x82", b"\xac", b"\xff", b" g", b" h"]


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr(module, "piece", lambda model, token: PIECES[token])


def found(n_tokens: int, selected: tuple[int, ...] = (), rows: tuple[int, ...] = ()) -> PrefillReport:
    return PrefillReport(n_tokens, len(selected) or n_tokens, "p", 4, selected=selected, rows_by_layer=rows)


def runs(answers: Answers, number: int) -> list[list]:
    return json.loads(answers.one_json(number))["runs"]


def test_kept_text_and_what_lies_between():
    answers = Answers(2)
    answers.open("model")
    report = {}
    answers.begin(0, range(8), 0, found(8, (0, 1, 4, 7)), report)
    assert report["answer"] == 1
    # the character of two tokens, of which the second was kept, belongs to it
    assert runs(answers, 1) == [[KEPT, "ab"], [DROPPED, " c"], [KEPT, "€"], [DROPPED, "\ufffd g"], [KEPT, " h"]]


def test_a_turn_goes_on_from_what_was_kept_before_it():
    answers = Answers(4)
    answers.open("model")
    answers.begin(0, [0, 1, 2], 0, found(3, (0, 2)), {})
    answers.begin(1, [7, 7], 0, found(2), {})
    answers.begin(0, [0, 1, 2, 6, 7, 7], 4, found(6, (5,)), {})
    assert runs(answers, 3) == [[KEPT, "a"], [DROPPED, "b"], [KEPT, " c g"], [DROPPED, " h"], [KEPT, " h"]]
    answers.begin(0, [6, 6, 7], 2, found(3, (2,)), {})  # a slot that was restored from a file
    assert runs(answers, 4) == [[UNKNOWN, " g g"], [KEPT, " h"]]


def test_rows_without_a_selection_of_tokens_are_not_known():
    answers = Answers(2)
    answers.open("model")
    answers.begin(0, [0, 1], 0, found(2, rows=(1, 1)), {})
    answers.begin(0, [0, 1], 0, found(2, rows=(2, 2)), {})
    assert [runs(answers, 1)[0][0], runs(answers, 2)[0][0]] == [UNKNOWN, KEPT]


def test_the_last_ones_are_remembered_with_their_text_even_without_the_model():
    answers = Answers(2)
    answers.open("model")
    for slot in (0, 1, 2):
        answers.begin(slot, [slot], 0, found(1), {})
    answers.end(1, "said", 3)
    answers.end(0, "forgotten", 1)
    answers.close()
    lines = json.loads(answers.list_json())["answers"]
    assert [(line["number"], line["slot"], line["text"], line["done"]) for line in lines] == [
        (3, 2, "", False),
        (2, 1, "said", True),
    ]
    assert answers.one_json(1) is None and runs(answers, 2) == [[KEPT, "b"]]


def test_none_are_remembered_where_none_are_wanted():
    answers = Answers(0)
    answers.open("model")
    answers.begin(0, [0], 0, found(1), report := {})
    assert not report and json.loads(answers.list_json()) == {"answers": []}


def test_totals_are_sums():
    totals = Totals()
    report = {
        "pruned": True, "prompt_tokens": 100, "kept_tokens": 20, "cached_tokens": 3, "seconds": 0.5, "kv_bytes": 7,
        "kv_bytes_full": 35, "selection_layer": 4,
    }  # fmt: skip
    totals.add(report)
    totals.add({**report, "pruned": False, "kept_tokens": 100, "selection_layer": None})
    totals.count("refused_prompts_total")
    lines = totals.prometheus().splitlines()
    values = dict(line.split() for line in lines if not line.startswith("#"))
    assert values["asl:pruned_tokens_total"] == "80" and values["asl:prompts_total"] == "2"
    assert values["asl:pruned_prompts_total"] == "1" and values["asl:prefill_seconds_total"] == "1"
    assert values["asl:selection_layer"] == "4" and values["asl:refused_prompts_total"] == "1"
    assert sum(line.startswith("# TYPE") for line in lines) == len(values)
