"""Conversations that grow by tool results: what was kept serves the next turn, and nothing throws it away unsaid."""

from __future__ import annotations

import pytest

from recordings import SYSTEM, TITLE, anthropic_requests, openai_requests, turns

CALLS = turns(3, (230, 260))
LIMITS = {"max_tokens": 2, "temperature": 0}
FORMS = {
    "openai": ("/v1/chat/completions", openai_requests),
    "anthropic": ("/v1/messages", anthropic_requests),
}


def ask(server, path, body):
    status, answer = server.post(path, {**LIMITS, **body})
    assert status == 200, answer
    return answer["asl"]


def erase(server):
    for slot in range(3):
        server.post(f"/slots/{slot}?action=erase", {})


@pytest.mark.parametrize("form", FORMS)
def test_each_turn_goes_on_from_the_last(server, form):
    path, make = FORMS[form]
    erase(server)
    n_pruned = n_turns = 0
    for body in make(CALLS, f"{SYSTEM} ({form})"):
        report = ask(server, path, body)
        assert report["cached_tokens"] >= n_pruned, report
        n_turns += report["cached_tokens"] >= n_pruned > 0
        n_pruned = report["prompt_tokens"] if report["pruned"] else 0
    assert n_turns == 2  # the first prompt is too short to be pruned


def test_a_title_in_between_does_not_throw_the_conversation_away(server):
    erase(server)
    first, *rest = openai_requests(CALLS, f"{SYSTEM} (title)")[-2:]
    n_before = ask(server, "/v1/chat/completions", first)["prompt_tokens"]
    for i in range(4):  # more than there are slots: the RAM cache has it then
        ask(
            server,
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": f"{i} {TITLE['messages'][0]['content']}"}]},
        )
    assert ask(server, "/v1/chat/completions", rest[0])["cached_tokens"] >= n_before


def test_a_changed_first_line_is_named_and_the_old_conversation_is_still_there(server):
    erase(server)
    first, second = openai_requests(CALLS, f"{SYSTEM} It is noon.")[-2:]
    n_before = ask(server, "/v1/chat/completions", first)["prompt_tokens"]
    changed = openai_requests(CALLS, f"{SYSTEM} It is night.")[-1]
    report = ask(server, "/v1/chat/completions", changed)
    difference = report["first_difference"]
    assert report["cached_tokens"] == 0 and 0 < difference["token"] < n_before
    assert (difference["was"].strip(), difference["is"].strip()) == ("noon", "night")
    assert ask(server, "/v1/chat/completions", second)["cached_tokens"] >= n_before
