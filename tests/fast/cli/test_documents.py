"""Documents of every kind become text; questions follow them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from asl_gguf import OptionError, PromptError
from asl_gguf.cli import documents, main
from asl_gguf.cli.documents import html_text, read_document, read_documents
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)
from tiny_llama import TEXT

PAGE = """<!DOCTYPE html><html><head><title>The log</title><style>p { color: red }</style><script>var a = "<p>no</p>";</script>
</head><body><h1>Day&nbsp;1</h1><p>The keeper <b>wrote</b>
 37 lines.<p>Then he slept.<br>Well.<table><tr><th>day<th>lines</tr><tr><td>1</td><td>37 &amp; more</td></tr></table>
<pre>  kept
    as it is</pre><ul><li>one<li>two</ul><noscript>never</noscript></body></html>"""


def pdf(text: str) -> bytes:
    """A page with a line of text; pypdf finds the objects although there is no table of them."""
    content = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(data),
    )


def test_html():
    found = html_text(PAGE)
    lines = [line for line in found.splitlines() if line]
    assert lines[:5] == ["The log", "Day 1", "The keeper wrote 37 lines.", "Then he slept.", "Well."]
    assert "1 | 37 & more" in lines and "    as it is" in lines and lines[-2:] == ["one", "two"]
    assert not [word for word in ("color", "var", "no</p>", "never", "<") if word in found]


@pytest.mark.parametrize("name, data", [("a.html", b"<p>gr\xfcn"), ("a", b"<html><meta charset=latin-1>gr\xfcn")])
def test_kinds_are_seen_and_encodings_read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    if b"charset" in data:
        assert read_document(path) == "grün\n"
    else:
        with pytest.raises(PromptError, match="UTF-8 text, or a PDF, DOCX or HTML document, got .*a.html"):
            read_document(path)
    path.write_bytes("grün".encode("utf-16"))
    assert read_document(path).strip() == "grün"


def test_pdf(tmp_path):
    pytest.importorskip("pypdf")
    path = tmp_path / "paper"  # whatever its name
    path.write_bytes(pdf("The code is 4711."))
    assert read_document(path).strip() == "The code is 4711."
    path.write_bytes(pdf(""))
    with pytest.raises(PromptError, match="expected a PDF with text in it, got .*OCR"):
        read_document(path)
    path.write_bytes(b"%PDF-1.4 broken")
    with pytest.raises(PromptError, match="expected a PDF that pypdf can read, got "):
        read_document(path)


def test_docx(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_paragraph("First.")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "day", "37"
    document.add_paragraph("Last.")
    document.save(path := tmp_path / "report.docx")
    assert read_document(path) == "First.\nday | 37\nLast."


@pytest.mark.parametrize("module, data", [("pypdf", pdf("a")), ("docx", None)])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, data):
    import zipfile

    path = tmp_path / "document"
    if data is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<w/>")
    else:
        path.write_bytes(data)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=r"installed for .*, found none; run pip install 'asl_gguf\[documents\]'"):
        read_document(path)


def test_several_documents_have_names(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n", encoding="utf-8")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert read_documents(paths[:1]) == "text of a.txt\n"
    assert read_documents(paths) == "# a.txt\n\ntext of a.txt\n\n# b.txt\n\ntext of b.txt"


def prompts_of(monkeypatch, capsys, model: str, *arguments: object) -> str:
    """The prompt that `run` sends to the model."""
    seen = []
    monkeypatch.setattr("asl_gguf.cli.run.answer", lambda llm, text, *rest, **more: seen.append(text) or _nothing(llm))
    assert main(["run", "-m", model, "-t", "1", "--json", *map(str, arguments)]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == ""
    return seen[0]


def _nothing(llm) -> tuple[str, int]:
    llm.create_completion("a", max_tokens=1)
    return "", 1


def test_what_is_asked(monkeypatch, capsys, tiny_model, tmp_path):
    model, path = str(tiny_model("llama")), tmp_path / "a.txt"
    path.write_text("A text.", encoding="utf-8")
    expected = "A text.\n\nWho?"
    for arguments in (["-f", path, "-q", "Who?"], ["-f", path, "-p", "Who?"]):
        assert prompts_of(monkeypatch, capsys, model, *arguments) == expected
    for arguments in (["-", "-q", "Who?"], ["-f", "-", "-q", "Who?"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A text.")))
        assert prompts_of(monkeypatch, capsys, model, *arguments) == expected
    several = prompts_of(monkeypatch, capsys, model, "-f", path, "-f", path, "-q", "Who?")
    assert several == "# a.txt\n\nA text.\n\n# a.txt\n\nA text.\n\nWho?"
    assert prompts_of(monkeypatch, capsys, model, "-f", path) == "A text."


def test_chat_takes_documents_too(chat, document, tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    arguments = ("-f", document, "-f", tmp_path / "page.html")
    code, _, err = chat(["Who wrote?", "/save a.json"], *arguments)
    asked = json.loads(Path("a.json").read_text())["messages"][0]["content"]
    assert (code, err) == (0, "") and asked == f"{TEXT}\n\n{html_text(PAGE)}\n\nWho wrote?"
    assert documents.read_plain(tmp_path / "page.html") == PAGE


@pytest.mark.parametrize(
    "start, kind",
    [
        (b"\x89PNG\r\n", "an image; .*OCR"), (b"\x1f\x8b\x08", "a gzip archive; unpack"), (b"PK\x03\x04", "a ZIP archive"),
        (b"GGUF\x03", "a GGUF model; models are -m"), (b"{\\rtf1", "an RTF document; save"), (b"\xd0\xcf\x11\xe0", "old Office"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_named(tmp_path, start, kind):
    (path := tmp_path / "file").write_bytes(start + bytes(40))
    with pytest.raises(PromptError, match=f"expected text, HTML, a PDF or DOCX, got .*file, which is .*{kind}"):
        read_document(path)


@pytest.mark.parametrize(
    "member, kind", [("xl/workbook.xml", "a spreadsheet; save it as CSV"), ("mimetype", "OpenDocument")]
)
def test_office_files_are_named(tmp_path, member, kind):
    import zipfile

    with zipfile.ZipFile(path := tmp_path / "file", "w") as archive:
        archive.writestr(member, "<w/>")
    with pytest.raises(PromptError, match=kind):
        read_document(path)


def test_older_encodings_get_a_way_out(tmp_path):
    (path := tmp_path / "brief.txt").write_bytes("Grüße aus Köln\n".encode("cp1252") * 9)
    with pytest.raises(PromptError, match="iconv -f windows-1252"):
        read_document(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(PromptError) as err:
        read_document(path)
    assert "iconv" not in str(err.value)


def test_reasons_are_the_systems_words(tmp_path):
    with pytest.raises(PromptError, match="none.txt: No such file or directory$"):
        read_document(tmp_path / "none.txt")
    with pytest.raises(PromptError, match="Is a directory; name its files$"):
        read_document(tmp_path)


def test_documents_have_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(documents, "_MOST_BYTES", 1 << 20)
    with pytest.raises(PromptError, match="at most 1 MiB, got more in /dev/zero; pass the part that matters"):
        read_document("/dev/zero")


def test_what_is_no_text_in_any_encoding(tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(PromptError, match="it holds no text: save it as text, PDF or DOCX"):
        read_document(tmp_path / "data.bin")
