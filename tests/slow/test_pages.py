"""The pages that commands write, in a browser: narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from asl_gguf.cli import main
from browser import opened
from tiny_llama import TEXT

PAGES = ("kept", "calibration", "report")
_CONTRAST = """() => {
    const channel = c => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
    const numbers = text => (text.match(/[0-9.]+/g) || []).map(Number);
    const light = c => .2126 * channel(c[0]) + .7152 * channel(c[1]) + .0722 * channel(c[2]);
    const over = (top, below) => {
        const a = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]);
    };
    const ground = node => {
        const own = numbers(getComputedStyle(node).backgroundColor);
        const below = node.parentElement ? ground(node.parentElement) : [255, 255, 255];
        return own.length ? over(own, below) : below;
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode, parent = node.parentElement;
        if (!node.textContent.trim() || parent.closest('svg, style, details:not([open])')) continue;
        const back = ground(parent), front = over(numbers(getComputedStyle(parent).color), back);
        const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
        const ratio = (high + .05) / (low + .05);
        if (ratio < 4.5) found.push([node.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model) -> Path:
    """One page of each kind, from small models."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    model, deep = str(tiny_model("llama")), str(tiny_model("llama", n_layer=12, n_head=2, n_head_kv=1, n_ff=64))
    name = {page: str(folder / f"{page}.html") for page in PAGES}
    text = ["-f", str(folder / "text.txt"), "-q", "Who wrote it?", "-n", "4"]
    assert main(["inspect", "-m", model, "-t", "1", *text, "-b", "80", "-o", name["kept"]]) == 0
    tasks = ["--tokens", "512", "--samples", "1", "--step", "3", "--easy", "passkey", "--hard", "keyvalue"]
    assert (
        main(
            [
                "calibrate",
                "-m",
                deep,
                "-t",
                "1",
                *tasks,
                "--auto-samples",
                "0",
                "--dry-run",
                "--out",
                name["calibration"],
            ]
        )
        == 0
    )
    suite = ["--suite", "smoke", "--tasks", "passkey,multikey", "--samples", "1", "--out", str(folder / "results")]
    assert main(["eval", "-m", model, "-t", "1", *suite]) == 0
    assert main(["report", str(folder / "results"), "--html", name["report"]]) == 0
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_and_can_be_read(folder, name, width, scheme):
    with opened(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((folder / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_CONTRAST) == []
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert said == []
