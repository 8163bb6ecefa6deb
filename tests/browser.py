"""A browser for tests of pages: Debian's chromium or another one of its kind, driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from patience import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[Any]:
    """A page. Tests are skipped where there is no browser; where there is one, they want playwright."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser ({', '.join(NAMES)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(f"expected playwright to drive {path}, found none; run pip install playwright", pytrace=False)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(**options)
        page.set_default_timeout(1000 * PATIENCE)
        try:
            yield page
        finally:
            browser.close()
