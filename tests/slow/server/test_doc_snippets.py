"""What docs/SERVER.md has a client do, as it is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doc_commands import blocks
from serving import LONG, Server, serving

TEXT = (Path(__file__).parents[3] / "docs" / "SERVER.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
CURL = [command for page, command in blocks() if page == "docs/SERVER.md" and command.startswith("curl ")]


@pytest.fixture(scope="module")
def server(smollm2, arguments) -> Iterator[Server]:
    """Its answers are short, whatever a snippet does not say."""
    with serving(smollm2, *arguments, "-n", "24") as server:
        yield server


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[1])
def test_a_client(server, snippet):
    pytest.importorskip(snippet.split()[1])
    names: dict[str, Any] = {"messages": LONG}
    exec(snippet.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), names)
    assert 0 < names["answer"].asl["kept_tokens"] < 200


@pytest.mark.parametrize("command", CURL)
def test_curl(server, command):
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    command = command.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}").replace(
        '"..."', json.dumps(LONG[0]["content"])
    )
    done = subprocess.run(["bash", "-c", f"{command} --silent"], capture_output=True, text=True, timeout=300)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] and answer["asl"]["policy"] == "snapkv"


def test_there_are_some():
    assert len(SNIPPETS) == 2 and len(CURL) == 1
