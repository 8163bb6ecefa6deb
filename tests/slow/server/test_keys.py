"""API keys and CORS: what is ours keeps to them as llama-server's own routes do."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from asl_gguf.server.engine import PAGE
from cut_gguf import cut
from patience import PATIENCE
from serving import Client, Server, serving

KEY = "secret-17"
ORIGIN = {"Origin": "http://elsewhere.example"}


@pytest.fixture(scope="module")
def keyed(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tmp_path_factory.mktemp("keys") / "cut.gguf"
    cut(smollm2, model, 3)
    with serving(
        model, *"--asl-budget 0.2 -np 1 -c 2048 -t 1 --asl-room 200 --metrics --api-key".split(), KEY
    ) as server:
        yield server


def headers_of(server: Server, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/asl/answers", "/asl/answers?number=1", "/slots", "/metrics"])
def test_what_shows_prompts_asks_for_the_key(keyed, path):
    assert keyed.get(path)[0] == 401
    assert Client(keyed.port)._request("GET", path, None, {"Authorization": "Bearer other"})[0] == 401


def test_the_page_itself_is_public_and_shows_nothing(keyed, document):
    secret = {"prompt": [*document[:300], *document[:20]], "n_predict": 2, "asl": {"budget": 0.1}}
    assert keyed.post("/completion", secret)[0] == 401
    status, answer = keyed.post("/completion", secret, {"Authorization": f"Bearer {KEY}"})
    assert status == 200 and answer["asl"]["pruned"]
    status, page = keyed.get("/asl")
    assert status == 200 and page == PAGE.read_text(encoding="utf-8")
    status, found = keyed._request("GET", "/asl/answers", None, {"Authorization": f"Bearer {KEY}"})
    assert status == 200 and found["answers"][0]["number"] == answer["asl"]["answer"]


def test_anthropics_header_is_a_key(keyed):
    anthropic = pytest.importorskip("anthropic")
    messages = [{"role": "user", "content": "The sky is blue. " * 80}]
    for key in (KEY, "other"):
        client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{keyed.port}", api_key=key, max_retries=0)
        if key == KEY:
            assert client.messages.create(model="any", messages=messages, max_tokens=2).asl["pruned"]
        else:
            with pytest.raises(anthropic.AuthenticationError):
                client.messages.create(model="any", messages=messages, max_tokens=2)


def test_our_routes_have_the_servers_cors(keyed):
    key = {"Authorization": f"Bearer {KEY}"}
    stock, ours = (headers_of(keyed, "GET", path, {**ORIGIN, **key}) for path in ("/props", "/asl/answers"))
    for status, headers in (stock, ours):
        assert status == 200, headers
    names = [name for name in stock[1] if name.startswith("access-control-")]
    assert names and {name: ours[1].get(name) for name in names} == {name: stock[1][name] for name in names}
    asked = {**ORIGIN, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    preflights = [headers_of(keyed, "OPTIONS", path, asked) for path in ("/props", "/asl/answers")]
    for part in (0, 1):
        first, second = (
            {k: v for k, v in dict(found[1]).items() if k != "date"} if part else found[0] for found in preflights
        )
        assert first == second
