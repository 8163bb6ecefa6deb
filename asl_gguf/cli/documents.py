"""Texts of documents: plain text, HTML, PDF and DOCX.

PDF and DOCX need pypdf and python-docx, the extra `documents`. HTML needs nothing: libraries for it give the text
between tags, and where lines and cells end has to be said here in any case.
"""

from __future__ import annotations

import html.parser
import importlib
import io
import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import OptionError, PromptError
from .streams import standard_input

STDIN = "-"
_MOST_BYTES = 512 << 20
"""of a document, with the pictures of a PDF"""
_HTML_SUFFIXES = {".htm", ".html", ".xhtml"}
_HTML_STARTS = ("<!doctype html", "<html")
_PACKED = "unpack it first"
_SPREADSHEET = "save it as CSV"
_SAVE = "save it as text, PDF or DOCX"
_STARTS = {
    b"\x89PNG": ("an image", "run it through OCR first"), b"\xff\xd8\xff": ("an image", "run it through OCR first"),
    b"GIF8": ("an image", "run it through OCR first"), b"GGUF": ("a GGUF model", "models are -m, documents -f"),
    b"\x1f\x8b": ("a gzip archive", _PACKED), b"BZh": ("a bzip2 archive", _PACKED), b"\xfd7zXZ": ("an xz archive", _PACKED),
    b"(\xb5/\xfd": ("a zstd archive", _PACKED), b"7z\xbc\xaf": ("a 7z archive", _PACKED),
    b"{\\rtf": ("an RTF document", _SAVE), b"\xd0\xcf\x11\xe0": ("a document of an old Office", _SAVE),
    b"\x7fELF": ("a program", "name a text"), b"SQLite format 3": ("a database", "write its rows as text"),
}  # fmt: skip
"""beginnings of files that are no documents -> their kind, and what to do"""
_MEMBERS = {
    "xl/workbook.xml": ("a spreadsheet", _SPREADSHEET), "ppt/presentation.xml": ("a presentation", "save it as PDF"),
    "mimetype": ("an OpenDocument or EPUB file", _SAVE),
}  # fmt: skip
"""the same for what is in ZIP archives"""
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
"""byte order marks -> encodings"""


def read_document(name: str | Path) -> str:
    """The text of a file, or of standard input (`-`), whatever its kind.

    Raises:
        PromptError: it cannot be read, holds no text, or is of no known kind.
        OptionError: it needs a package that is not installed.
    """
    return _read(name, _text_of)


def read_plain(name: str | Path) -> str:
    """The text of a file as it is.

    Raises:
        PromptError: it cannot be read as text, or holds none.
    """
    return _read(name, _decoded)


def _read(name: str | Path, text_of: Callable[[bytes, str], str]) -> str:
    source = "standard input" if str(name) == STDIN else str(name)
    try:
        if str(name) == STDIN:
            data = standard_input().read(_MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except PromptError:
        raise
    except (OSError, ValueError) as err:  # ValueError: a path with a null byte
        why = err.strerror if isinstance(err, OSError) and err.strerror else err
        advice = "; name its files" if isinstance(err, IsADirectoryError) else ""
        raise PromptError(f"expected readable UTF-8 text, got {source}: {why}{advice}") from err
    if len(data) > _MOST_BYTES:  # a device has no end
        raise PromptError(
            f"expected a document of at most {_MOST_BYTES >> 20} MiB, got more in {source}; pass the part that matters"
        )
    text = text_of(data, source)
    if not text.strip():
        raise PromptError(f"expected readable UTF-8 text, got {source}: it is empty")
    return text


def read_documents(names: Sequence[str | Path]) -> str:
    """The texts of files, one after the other; of several, each under its name."""
    if len(names) == 1:
        return read_document(names[0])
    titles = ["standard input" if str(name) == STDIN else Path(name).name for name in names]
    return "\n\n".join(f"# {title}\n\n{read_document(name).strip()}" for title, name in zip(titles, names))


def _text_of(data: bytes, source: str) -> str:
    if b"%PDF-" in data[:1024]:
        return _with_package("pypdf", "pypdf", "a PDF", source, lambda pypdf: _pdf_text(pypdf, data))
    if data.startswith(b"PK\x03\x04") and _is_docx(data):
        return _with_package("docx", "python-docx", "a DOCX", source, lambda docx: _docx_text(docx, data))
    if (known := _known_kind(data)) is not None:
        kind, advice = known
        raise PromptError(f"expected text, HTML, a PDF or DOCX, got {source}, which is {kind}; {advice}")
    text = _decoded(data, source)
    is_html = Path(source).suffix.lower() in _HTML_SUFFIXES or text.lstrip()[:20].lower().startswith(_HTML_STARTS)
    return html_text(text) if is_html else text


def _known_kind(data: bytes) -> tuple[str, str] | None:
    """What a file without text is, and what to do with it."""
    if data.startswith(b"PK\x03\x04"):
        names = _members(data)
        return next((kind for name, kind in _MEMBERS.items() if name in names), ("a ZIP archive", _PACKED))
    return next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)


def _decoded(data: bytes, source: str) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    declared = re.search(rb"<meta[^>]+charset=[\"']?([\w-]+)", data[:2048], re.IGNORECASE)
    try:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            if declared is None:
                raise
            text = data.decode(declared[1].decode("ascii"))
    except (UnicodeError, LookupError) as err:
        raise PromptError(
            f"expected readable UTF-8 text, or a PDF, DOCX or HTML document, got {source}: {err}{_other_encoding(data)}"
        ) from err
    if "\0" in text:
        raise PromptError(f"expected readable UTF-8 text, got {source}: it holds null bytes")
    return text


def _other_encoding(data: bytes) -> str:
    """What to do with a text in an older encoding, and with what is no text in one either."""
    if b"\0" in data or sum(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in data) > len(data) // 100:
        return "; it holds no text: save it as text, PDF or DOCX"
    return "; if it is text in an older encoding: iconv -f windows-1252 -t utf-8 FILE | asl-gguf ... -"


def _with_package(module: str, package: str, kind: str, source: str, read: Callable[[Any], str]) -> str:
    """What `read` makes of a document with an imported package.

    Raises:
        OptionError: the package is not installed.
        PromptError: the document is damaged, locked, or has no text in it.
    """
    try:
        imported = importlib.import_module(module)
    except ImportError:
        raise OptionError(
            f"expected {package} to be installed for {source}, which is {kind}, found none; "
            "run pip install 'asl_gguf[documents]'"
        ) from None
    try:
        text = read(imported)
    except Exception as err:  # parsers raise nearly anything on damaged files
        raise PromptError(
            f"expected {kind} that {package} can read, got {source}: {type(err).__name__}: {' '.join(str(err).split())}"
        ) from err
    if not text.strip():
        raise PromptError(f"expected {kind} with text in it, got {source} without; run a scan through OCR first")
    return text


def _pdf_text(pypdf: Any, data: bytes) -> str:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of what it has read in spite of it
    reader = pypdf.PdfReader(io.BytesIO(data))
    return "\n\n".join(page.extract_text() for page in reader.pages)


def _is_docx(data: bytes) -> bool:
    return "word/document.xml" in _members(data)


def _members(data: bytes) -> list[str]:
    """Names in a ZIP archive; none in a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _docx_text(docx: Any, data: bytes) -> str:
    blocks = []
    for block in docx.Document(io.BytesIO(data)).iter_inner_content():
        if hasattr(block, "rows"):
            blocks.append("\n".join(" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows))
        else:
            blocks.append(block.text)
    return "\n".join(blocks)


def html_text(text: str) -> str:
    """The text of a page as one reads it: a line for each block, ` | ` between cells, no scripts and styles."""
    parser = _HTMLText()
    parser.feed(text)
    parser.close()
    return parser.text()


class _HTMLText(html.parser.HTMLParser):
    _SILENT = frozenset({"script", "style", "template", "noscript", "svg", "head"})
    _BLOCKS = frozenset(
        "address article aside blockquote body dd details div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
        "hr li main nav ol p pre section table tbody thead tr ul br title".split()
    )
    _CELLS = frozenset({"td", "th"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._silent: list[str] = []  # open elements whose text is not shown
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "body":
            self._silent.clear()  # a head without an end
        if tag in self._SILENT:
            self._silent.append(tag)
        if tag in self._BLOCKS:
            self._parts.append("\n")
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        if tag in self._BLOCKS:
            self._parts.append("\n")
        elif tag in self._CELLS:
            self._parts.append(" | ")
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1

    def handle_data(self, data: str) -> None:
        if not self._silent or (self._silent == ["head"] and self.lasttag == "title"):
            self._parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = (re.sub(r"( \| ?)+$", "", line.rstrip()) for line in "".join(self._parts).split("\n"))
        tidy = "\n".join(line.strip() if not line.startswith("  ") else line for line in lines)
        return re.sub(r"\n{3,}", "\n\n", tidy).strip() + "\n"
