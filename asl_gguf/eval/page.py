"""The results as one HTML page: tables and figures, no scripts, nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from .figures import Drawing
from .page_style import figure, table, whole
from .results import Row
from .summary import document


def page(rows: Sequence[Row], drawn: Sequence[Drawing], title: str = "Answers under pruning") -> str:
    """The whole page."""
    head, tables = _head_and_tables(document(rows, title))
    figures = "\n".join(map(_figure, drawn))
    return whole(title, f"{head}\n{figures}\n<h2>Tables</h2>\n{tables}")


def _figure(drawing: Drawing) -> str:
    return f"<h2>{escape(drawing.title)}</h2>\n" + figure(drawing.name, drawing.svg(), drawing.title, drawing.text)


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
    return table(head, body)
