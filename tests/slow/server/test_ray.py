"""docs/examples/ray_serve.py: two replicas under Ray Serve. A session stays with its replica, streams pass."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cut_gguf import cut
from serving import Client, free_port

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "ray_serve.py"
ARGUMENTS = "--asl-budget 0.2 -np 2 -c 4096 -t 1 --asl-room 256 --cache-ram 0 --no-warmup --fit off"


@pytest.fixture(scope="module")
def client(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    ray, serve = pytest.importorskip("ray"), pytest.importorskip("ray.serve")
    model = tmp_path_factory.mktemp("ray") / "cut.gguf"
    cut(smollm2, model, 6)
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    assert spec and spec.loader
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(example.Endpoint.bind(f"-m {model} {ARGUMENTS}"), name="asl", route_prefix="/")
        yield Client(port)
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(client: Client, prompt: list[int], session: str) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": 4, "temperature": 0, "return_tokens": True}
    status, answer = client.post("/completion", body, {"serve_multiplexed_model_id": session})
    assert status == 200, answer
    return answer


def test_a_session_stays_with_its_replica(client, document):
    """A turn that found the other replica would begin anew."""
    firsts = {}
    for i in range(2):
        prompt = [*document[i + 1 :], *document[: i + 1]]
        firsts[i] = prompt, ask(client, prompt, f"session {i}")
        assert firsts[i][1]["asl"]["pruned"]
    for i, (prompt, first) in firsts.items():
        again = ask(client, [*prompt, *first["tokens"], *document[:8]], f"session {i}")
        assert again["asl"]["cached_tokens"] >= len(prompt)


def test_streams_pass(client, document):
    body = {"prompt": document, "n_predict": 40, "temperature": 0, "ignore_eos": True}
    times = [when for when, event in client.stream("/completion", body) if event["content"]]
    assert len(times) > 10 and times[-1] > times[0]


def test_errors_pass(client):
    status, answer = client.post("/completion", {"prompt": "a", "asl": {"budget": 7}})
    assert status == 400 and "budget" in answer["error"]["message"]


def test_openai_speaks_to_it(client):
    openai = pytest.importorskip("openai")
    speaker = openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0)
    answer = speaker.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": "The sky is blue. " * 80}],
        max_tokens=4,
        extra_headers={"serve_multiplexed_model_id": "mine"},
    )
    assert answer.asl["kept_tokens"] < answer.usage.prompt_tokens
