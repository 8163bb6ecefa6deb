"""What pages about results share: light and dark, from a telephone's width on; no scripts, nothing from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #111; --quiet: #4d4d4d; --line: #bbb; --block: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --text: #e8e8e8; --quiet: #adadad; --line: #555;
  --block: #22252a; } img { filter: invert(.915); } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, li, dd { overflow-wrap: anywhere; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
pre { font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--block);
  padding: .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .15rem .5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; } thead th { border-bottom: 2px solid var(--text); }
img { max-width: 100%; height: auto; display: block; } figure { margin: 1rem 0; } figcaption { color: var(--quiet); }
@media (max-width: 40rem) { body { margin: 1rem auto; } img { max-width: none; width: 40rem; } }
"""
# figures are grey on white: inverted in the dark, and no narrower than their letters can be read, where they scroll


def whole(title: str, body: str) -> str:
    """A page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def figure(name: str, svg: bytes, title: str, text: str) -> str:
    """A picture with what it shows under it."""
    data = b64encode(svg).decode("ascii")
    return (
        f'<figure id="{escape(name)}"><div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    written = "\n".join(row(cells, "td") for cells in body)
    return f'<div class="wide" tabindex="0"><table><thead>{row(head, "th")}</thead>\n<tbody>{written}</tbody></table></div>'
