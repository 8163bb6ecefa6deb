"""llama.cpp's own page on our server, if somebody has built it (`make ui`): a chat by keyboard."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from browser import opened
from serving import serving

ROOT = Path(__file__).parents[3]
PAGE = Path(os.environ.get("ASL_TEST_UI", ROOT / "build" / "ui" / "dist"))


@pytest.mark.skipif(not (PAGE / "index.html").exists(), reason="the page is not built (make ui)")
def test_a_chat_on_the_servers_own_page(smollm2):
    arguments = f"--asl-budget 0.2 -np 2 -c 4096 -t 1 --asl-room 256 -n 16 --path {PAGE}".split()
    with serving(smollm2, *arguments) as server, opened() as page:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("textarea").first.fill("Ships carry salt. " * 120 + "What do ships carry?")
        page.keyboard.press("Enter")
        while not any("report" in slot["asl"] and not slot["is_processing"] for slot in server.slots()):
            page.wait_for_timeout(100)
        report = next(slot["asl"]["report"] for slot in server.slots() if "report" in slot["asl"])
        assert report["pruned"] and report["prompt_tokens"] > 400
        answer = page.request.get(f"http://127.0.0.1:{server.port}/asl/answers").json()["answers"][-1]["text"]
        page.get_by_text(answer.split()[0]).first.wait_for()
