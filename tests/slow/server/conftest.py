from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asl_gguf.eval.demo_text import make_document
from asl_gguf.native.vocabulary import tokenize
from asl_gguf.server.bindings import library_path
from harness import Model
from serving import Server, serving

N_CTX = 2048
ROOM = 256
ROOT = Path(__file__).parents[3]
TEMPLATE = "source/*/vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"
"""in the build's folder: the model's own markers, and tools, which its own template leaves out"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not library_path().exists():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="llama.cpp's server is not built (-DASL_BUILD_SERVER=ON)"))


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three slots of 2,048 tokens, exact weights, no flash attention: as `Llama` without options."""
    texts = f"--asl-budget 0.2 --asl-dequant off --asl-room {ROOM} -np 3 -c {3 * N_CTX} -t 1 -fa off --metrics"
    template = next(ROOT.glob(f"build/py3-none-*/{TEMPLATE}"))
    return [
        *texts.split(),
        "--chat-template-file",
        str(template),
        "--slot-save-path",
        str(tmp_path_factory.mktemp("slots")),
    ]


@pytest.fixture(scope="session")
def server(smollm2: Path, arguments: list[str]) -> Iterator[Server]:
    with serving(smollm2, *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def document(smollm2: Path) -> list[int]:
    """About 700 tokens of text with facts in it, and a question."""
    model = Model(smollm2)
    try:
        made = make_document(lambda text: len(tokenize(model.handle, text)), 700)
        return tokenize(model.handle, f"{made.text}\n\nQuestion: what does the text say? Answer:")
    finally:
        model.close()
