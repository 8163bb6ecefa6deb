"""The page at /asl in a browser: drop a file, ask, see the kept text, move the budget. All by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from asl_gguf.eval.demo_text import make_document
from patience import PATIENCE

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def page(server) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.foreign = []
        own = f"http://127.0.0.1:{server.port}/"
        page.on(
            "request",
            lambda request: request.url.startswith((own, "data:", "blob:")) or page.foreign.append(request.url),
        )
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(own + "asl")
        yield page
        browser.close()


def ask(page: Any, question: str) -> None:
    """By keyboard, and waits until the answer is shown."""
    n_before = page.locator("#list li").count()
    page.focus("#ask")
    page.keyboard.type(question)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_function("n => document.querySelectorAll('#list li').length > n || n >= 8", arg=n_before)
    assert page.inner_text("#error") == ""


def test_a_document_is_asked_about_and_the_kept_text_is_shown(page, tmp_path):
    page.wait_for_function("() => document.getElementById('server').textContent.includes('asl-span')")
    file = tmp_path / "notes.txt"
    file.write_text(make_document(lambda text: len(text) // 4, 450).text, encoding="utf-8")
    page.select_option("#length", "64")
    page.set_input_files("#file", str(file))
    page.wait_for_function("() => document.getElementById('document').textContent.includes('notes.txt')")
    ask(page, "What is the number?")
    page.wait_for_selector("#detail mark")
    facts = page.inner_text("#detail dl")
    assert "tokens (asl-span" in facts and "Selection layer" in facts
    kept, dropped = page.locator("#detail mark"), page.locator("#detail .dropped")
    assert kept.count() > 3 and dropped.count() > 3
    whole = page.locator("#detail .prompt").text_content()
    assert file.read_text(encoding="utf-8")[:200] in whole and "What is the number?" in whole
    page.check("#only")
    assert not dropped.first.is_visible() and kept.first.is_visible()
    assert page.locator("#detail svg polyline").count() == 1
    assert page.locator("#detail table tr").count() > 2
    assert page.errors == [] and page.foreign == []


def test_the_budget_moves_by_keyboard(page, tmp_path):
    page.click("#new")
    page.focus("#budget")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#budget-text") == "10 %"
    file = tmp_path / "more.txt"
    file.write_text(make_document(lambda text: len(text) // 4, 400).text, encoding="utf-8")
    page.set_input_files("#file", str(file))
    page.wait_for_function("() => document.getElementById('document').textContent.includes('more.txt')")
    ask(page, "Which colour?")
    page.wait_for_function("() => document.querySelector('#list button[aria-pressed=true]')")
    kept, total = (int(word) for word in page.inner_text("#detail dd >> nth=0").split()[:3:2])
    assert kept == total // 10


def test_screen_readers_and_keyboards_find_everything(page):
    """Names of all controls, a language, live regions, an order of focus."""
    assert page.get_attribute("html", "lang") == "en"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, select, button')]
            .filter(node => node.offsetParent && !(node.labels && node.labels.length) && !node.textContent.trim() && !node.ariaLabel)
            .map(node => node.id)"""
    )
    assert nameless == []
    assert page.get_attribute("#log", "aria-live") == "polite" and page.get_attribute("#error", "role") == "alert"
    assert page.get_attribute("#detail .prompt", "tabindex") == "0"
    page.focus(".skip")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert [name for name in seen if name in ("ask", "budget", "send")] == ["ask", "budget", "send"]
    page.locator("#list button").last.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'kept-title'")
