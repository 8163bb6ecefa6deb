"""The results as one HTML page: tables and figures, no scripts, nothing from elsewhere."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape

from .figures import Drawing
from .results import Row
from .summary import document

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
pre { font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; background: #f2f2f2; padding: .6rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #bbb; padding: .15rem .5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #000; }
img { max-width: 100%; height: auto; display: block; } figure { margin: 1rem 0; } figcaption { color: #444; }
"""


def page(rows: Sequence[Row], drawn: Sequence[Drawing], title: str = "Answers under pruning") -> str:
    """The whole page."""
    head, tables = _head_and_tables(document(rows, title))
    figures = "\n".join(map(_figure, drawn))
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
{head}
{figures}
<h2>Tables</h2>
{tables}
</body>
</html>
"""


def _figure(drawing: Drawing) -> str:
    data = b64encode(drawing.svg()).decode("ascii")
    title, text = escape(drawing.title), escape(drawing.text)
    return (
        f'<h2>{title}</h2>\n<figure id="{escape(drawing.name)}"><img alt="{title}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _head_and_tables(markdown: str) -> tuple[str, str]:
    """What `summary.document` writes, as HTML: all before the first table, and the rest."""
    blocks = list(_blocks(markdown))
    first = next((i for i, block in enumerate(blocks) if block.startswith("<div")), len(blocks))
    first = max(0, first - 1)  # the paragraph above a table belongs to it
    return "\n".join(blocks[:first]), "\n".join(blocks[first:])


def _blocks(markdown: str) -> Iterator[str]:
    for block in markdown.split("\n\n"):
        if block.startswith("# "):
            yield f"<h1>{escape(block[2:])}</h1>"
        elif block.startswith("    "):
            text = re.sub("^    ", "", block, flags=re.MULTILINE)
            yield f"<pre>{escape(text)}</pre>"
        elif block.startswith("|"):
            yield _table(block.splitlines())
        else:
            text = re.sub("`([^`]*)`", r"<code>\1</code>", escape(block))
            yield f"<p>{text}</p>"


def _table(lines: Sequence[str]) -> str:
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    written = "\n".join(row(cells, "td") for cells in body)
    return f'<div class="wide"><table><thead>{row(head, "th")}</thead>\n<tbody>{written}</tbody></table></div>'
