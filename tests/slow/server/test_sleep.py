"""`--sleep-idle-seconds`: the model goes, its memory with it, and comes back; nothing that it held before is served."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cut_gguf import cut
from patience import PATIENCE
from serving import Server, serving

ARGUMENTS = (
    "--asl-budget 0.2 -np 2 -c 4096 -t 1 --asl-room 256 --asl-full-kv on --sleep-idle-seconds 2 --metrics".split()
)


@pytest.fixture(scope="module")
def sleeper(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sleep")
    model = folder / "cut.gguf"
    cut(smollm2, model, 8)
    with serving(model, *ARGUMENTS, "--slot-save-path", str(folder)) as server:
        yield server


def wait_until_asleep(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while not server.get("/props")[1]["is_sleeping"]:
        assert time.monotonic() < end, "the server stays awake"
        time.sleep(0.1)


def resident_mib(server: Server) -> float:
    """Without pages of files."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def test_answers_after_waking_are_those_before(sleeper, document):
    before = sleeper.complete(document, id_slot=0)
    assert before["asl"]["pruned"]
    props = sleeper.get("/props")[1]["asl"]
    wait_until_asleep(sleeper)
    after = sleeper.complete(document, id_slot=0)
    assert after["content"] == before["content"]
    for name in ("kept_tokens", "selection_layer", "attention_mass", "kv_bytes"):
        assert after["asl"][name] == before["asl"][name]
    assert after["asl"]["cached_tokens"] == 0 and after["asl"]["first_difference"] is None
    assert sleeper.get("/props")[1]["asl"] == props
    turn = sleeper.complete([*document, *document[:20]], id_slot=0)["asl"]
    assert turn["cached_tokens"] >= len(document) and turn["pruned"]


def test_a_slot_file_outlives_the_sleep(sleeper, document):
    sleeper.complete(document, id_slot=1)
    assert sleeper.post("/slots/1?action=save", {"filename": "asleep.bin"})[0] == 200
    wait_until_asleep(sleeper)
    assert sleeper.post("/slots/1?action=restore", {"filename": "asleep.bin"})[0] == 200
    assert sleeper.slots()[1]["asl"]["n_pruned"] == len(document)
    edited = sleeper.complete([*document[:-9], *document[:9]], id_slot=1)["asl"]
    assert edited["cached_tokens"] < len(document) and edited["pruned"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_holds_no_memory_asleep(sleeper, document):
    for i in range(2):  # K/V of all tokens of two prompts
        sleeper.complete([document[i], *document, *document], 2, id_slot=i)
    host_bytes = sleeper.slots()[1]["asl"]["report"]["host_kv_bytes"]
    assert host_bytes > 0
    awake = resident_mib(sleeper)
    wait_until_asleep(sleeper)
    gone = (sleeper.get("/props")[1]["asl"]["kv_bytes"] + 2 * host_bytes) / 2**20
    end = time.monotonic() + 60
    while (asleep := resident_mib(sleeper)) > awake - 0.8 * gone:  # it says so before all of it is gone
        assert time.monotonic() < end, (
            f"{awake:.0f} MiB awake, {asleep:.0f} asleep; cells and K/V on the host: {gone:.0f}"
        )
        time.sleep(0.1)
    print(f"{awake:.0f} MiB awake, {asleep:.0f} asleep")


def test_what_is_shown_does_not_wake_it(sleeper, document):
    number = sleeper.complete(document, 2)["asl"]["answer"]
    wait_until_asleep(sleeper)
    assert sleeper.get("/asl")[0] == 200
    status, answer = sleeper.get(f"/asl/answers?number={number}")
    assert status == 200 and len(answer["runs"]) > 3
    assert {state for state, _ in answer["runs"]} == {0, 1}
    assert any(one["number"] == number for one in sleeper.get("/asl/answers")[1]["answers"])
    assert "asl:kept_tokens_total" in sleeper.get("/metrics")[1]
    assert sleeper.get("/props")[1]["is_sleeping"]


def test_it_ends_asleep(sleeper):
    wait_until_asleep(sleeper)
    assert sleeper.stop(signal.SIGTERM) == 0
