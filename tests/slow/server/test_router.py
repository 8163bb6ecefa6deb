"""Router mode: `asl-gguf serve` without a model starts a server for each model that is asked for, and each prunes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cut_gguf import cut
from patience import PATIENCE
from serving import Server, serving

ARGUMENTS = "-np 2 -c 4096 -t 1 --models-max 1 --asl-budget 0.2 --asl-room 200 --metrics".split()
NAMES = ("deep", "flat")


@pytest.fixture(scope="module")
def router(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for name, n_layer in zip(NAMES, (6, 3), strict=True):
        cut(smollm2, folder / f"{name}.gguf", n_layer)
    environment = {"LLAMA_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    with serving(None, "--models-dir", str(folder), *ARGUMENTS, env=environment) as server:
        yield server


def ask(router: Server, name: str, document: list[int]) -> dict:
    status, answer = router.post("/completion", {"model": name, "prompt": document, "n_predict": 4, "temperature": 0})
    assert status == 200, answer
    return answer


def running(router: Server) -> list[str]:
    return [model["id"] for model in router.get("/models")[1]["data"] if model["status"]["value"] == "loaded"]


def test_each_model_prunes_with_the_routers_flags(router, document):
    """One at a time: the second one takes the first one's place, and the first one comes back."""
    for name, n_layer in (("deep", 6), ("flat", 3), ("deep", 6)):
        report = ask(router, name, document)["asl"]
        assert report["n_layer"] == n_layer and report["kept_tokens"] == len(document) // 5
        assert running(router) == [name]


def test_a_stream_and_what_a_request_asks_for(router, document):
    body = {"model": "flat", "prompt": document, "n_predict": 8, "temperature": 0, "asl": {"budget": 0.1}}
    events = [event for _, event in router.stream("/completion", body)]
    assert events[-1]["asl"]["kept_tokens"] == len(document) // 10 and len(events) > 2
    status, answer = router.post("/completion", {**body, "asl": {"budget": 9.5}})
    assert status == 400 and "budget" in answer["error"]["message"]
    status, props = router.get("/props?model=flat")
    assert status == 200 and props["asl"]["room"] == 200


def test_openai_chooses_a_model(router):
    openai = pytest.importorskip("openai")
    # as it comes, with its retries: llama-server closes a connection that idles for 5 s, which a busy machine reaches
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key="none")
    assert {model.id for model in client.models.list()} >= set(NAMES)
    messages = [{"role": "user", "content": "The sky is blue. " * 80}]
    for name in NAMES:
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=3)
        assert answer.asl["pruned"] and answer.model == name
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="none such", messages=messages)


def test_its_servers_end_with_it(router, document):
    ask(router, "flat", document)
    found = Path(f"/proc/{router.process.pid}/task").glob("*/children")  # Linux: of each thread
    pids = [int(pid) for children in found for pid in children.read_text().split()]
    assert pids or not Path("/proc").exists()
    assert router.stop() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert router.process.wait(PATIENCE) == 0
