"""mkdocs hook: pages that lie outside docs/ become part of the site, and links between both lead there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "patches/README.md": "patches/README.md",
    "bench/gpu/README.md": "bench/gpu/README.md",
    "bench/peers/README.md": "bench/peers/README.md",
}
"""page of the site -> file of the repository"""
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for page, source in _OUTSIDE.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    folder = (_ROOT / _OUTSIDE.get(uri, f"docs/{uri}")).parent

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], (folder / match[2]).resolve(), match[3] or ""
        name = str(target.relative_to(_ROOT)) if target.is_relative_to(_ROOT) else match[2]
        to = next((page for page, source in _OUTSIDE.items() if source == name), name.removeprefix("docs/"))
        if not to.endswith((".md", ".svg", ".png")):
            return f"{text} (`{name}`)"  # a source file, which is no page
        return f"[{text}]({'../' * uri.count('/')}{to}{anchor})"

    return _LINK.sub(link, markdown)
