"""The page at /asl in a browser: drop a file, ask, see the kept text, move the budget. All by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asl_gguf.eval.demo_text import make_document
from browser import opened


@pytest.fixture(scope="module")
def page(server) -> Iterator[Any]:
    with opened() as page:
        page.foreign = []
        own = f"http://127.0.0.1:{server.port}/"
        page.on(
            "request",
            lambda request: request.url.startswith((own, "data:", "blob:")) or page.foreign.append(request.url),
        )
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
        page.goto(own + "asl")
        yield page


def make_text(folder: Path, name: str, n_tokens: int) -> Path:
    """A file of about so many tokens."""
    file = folder / name
    file.write_text(make_document(lambda text: len(text) // 4, n_tokens).text, encoding="utf-8")
    return file


def drop(page: Any, file: Path) -> None:
    """Over the area that says so."""
    data = page.evaluate_handle(
        """([name, text]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name, { type: 'text/plain' }));
            return data;
        }""",
        [file.name, file.read_text(encoding="utf-8")],
    )
    for kind in ("dragover", "drop"):
        page.dispatch_event("#drop", kind, {"dataTransfer": data})
    page.wait_for_function("name => document.getElementById('document').textContent.includes(name)", arg=file.name)


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
    file = make_text(tmp_path, "notes.txt", 450)
    page.select_option("#length", "64")
    drop(page, file)
    assert "over" not in (page.get_attribute("#drop", "class") or "").split()
    ask(page, "What is the number?")
    page.wait_for_selector("#detail mark")
    facts = page.inner_text("#detail dl")
    assert "tokens (asl-span" in facts and "Selection layer" in facts
    kept, dropped = page.locator("#detail mark"), page.locator("#detail .dropped")
    assert kept.count() > 1 and dropped.count() > 1
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
    file = make_text(tmp_path, "more.txt", 400)
    page.focus("#file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(file))
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


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_narrow_and_wide_windows(page, width):
    """Nothing sticks out to the side, with an answer's kept text and variance trace shown."""
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#list button").first.click()
    page.wait_for_selector("#detail svg")
    page.evaluate("() => document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(node => node.getClientRects().length)
            .filter(node => { const box = node.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth; })
            .map(node => node.tagName + ' ' + node.textContent.slice(0, 40))"""
    )
    assert outside == []
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, select')].filter(node => node.offsetParent)
            .filter(node => node.getBoundingClientRect().height < 24).map(node => node.textContent)"""
    )
    assert small == []  # a finger's least target (WCAG 2.2)


def test_what_is_no_text_is_refused_with_words(page, tmp_path):
    file = tmp_path / "image.bin"
    file.write_bytes(b"\x89PNG\0\0")
    page.set_input_files("#file", str(file))
    page.wait_for_function("() => document.getElementById('error').textContent.includes('text file')")
    assert page.inner_text("#document") == ""
    assert page.errors == [] and page.foreign == []
