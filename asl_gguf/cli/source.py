"""What a prompt is made of: text given on the command line, documents, and a question about them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import OptionError, PromptError
from .documents import STDIN, read_documents

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """-f, -q, -p and `-`."""
    parser.add_argument(
        "-f", "--file", action="append", dest="files", metavar="FILE", default=[],
        help="a document: text, HTML, PDF or DOCX; - for standard input; may be repeated. Without a question it is the prompt",
    )  # fmt: skip
    parser.add_argument("-q", "--question", help="asked about the documents, after their text")
    parser.add_argument("-p", "--prompt", help="the prompt; with -f the question")
    parser.add_argument("stdin", nargs="?", type=_stdin, metavar="-", help="reads a document from standard input")


def _stdin(text: str) -> str:
    if text != STDIN:
        kind = "-f, for a document" if Path(text).is_file() else "-p, for a prompt, or -q, for a question about -f"
        raise argparse.ArgumentTypeError(f"expected an option in front of {text!r:.80}, got none; {kind}")
    return text


def read_source(args: argparse.Namespace) -> str:
    """The prompt's text: the documents, then the question.

    Raises:
        PromptError: a document cannot be read, or the prompt is empty.
        OptionError: there is nothing to read, a question without a document, or two of them.
    """
    names = [*args.files, *([STDIN] if args.stdin else [])]
    if names.count(STDIN) > 1:
        raise OptionError("--file: expected standard input (-) once, got it twice")
    if args.question is not None and args.prompt is not None:
        raise OptionError("--question: expected -q or -p, got both; they mean the same beside --file")
    if args.question is not None and not names:
        raise OptionError("--question: expected together with --file, got it alone; a prompt without a document is -p")
    question = _checked(args, "--question" if args.prompt is None else "--prompt")
    if not names and question is None:
        raise OptionError("expected a prompt (-p TEXT), a document (-f FILE -q QUESTION) or -, got none of them")
    return "\n\n".join([*([read_documents(names)] if names else []), *([question] if question is not None else [])])


def _checked(args: argparse.Namespace, source: str) -> str | None:
    """The text that is given, its escapes read.

    Raises:
        PromptError: it is blank, or no UTF-8.
    """
    text = args.question if args.prompt is None else args.prompt
    if text is None:
        return None
    require_utf8(source, text)
    text = unescaped(args, text)
    if not text.strip():
        raise PromptError(f"expected a prompt with text in it, got an empty one ({source})")
    return str(text)


def require_utf8(option: str, text: str) -> None:
    """Raises PromptError for a text that is no UTF-8: such bytes arrive from the shell as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeError as err:
        raise PromptError(f"expected readable UTF-8 text, got {option}: {err}") from err


def unescaped(args: argparse.Namespace, text: str) -> str:
    """The text as llama.cpp's programs read it, unless --no-escape: \\n is a line break, \\x41 a byte, \\d as it is.

    Raises:
        PromptError: its bytes are no UTF-8.
    """
    if not args.escape:
        return text
    read = _ESCAPE.sub(
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else _ESCAPED.get(found[2], found[0]), text.encode()
    )
    try:
        if b"\0" in read:
            raise ValueError("a null byte")
        return read.decode("utf-8")
    except ValueError as err:
        raise PromptError(
            f"expected escapes of readable UTF-8 text, got {text!r:.80}: {err}; --no-escape leaves them alone"
        ) from err
