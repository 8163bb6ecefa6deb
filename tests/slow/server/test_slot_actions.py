"""Saving, restoring and erasing slots while others ask: all are answered, in turn, and no answer changes."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path

import pytest

from cut_gguf import cut
from serving import Server, serving

ARGUMENTS = "--asl-budget 0.2 -np 2 -c 4096 -t 1 -fa off --asl-dequant off --asl-room 256 --cache-ram 64".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def shallow(smollm2: Path, folder: Path):
    model = folder / "cut.gguf"
    cut(smollm2, model, 4)
    with serving(model, *ARGUMENTS, "--slot-save-path", str(folder)) as server:
        yield server


def fresh(server: Server, prompt: list[int]) -> str:
    return server.complete(prompt, cache_prompt=False, id_slot=1)["content"]


@pytest.mark.parametrize("prefills", [True, False], ids=["prefill", "answer"])
def test_several_that_wait_for_one_slot_all_end(shallow, document, prefills):
    """llama-server took one of them when the slot was free, and the others when somebody else's answer ended."""
    want = fresh(shallow, document)
    shallow.complete(document, id_slot=0)
    assert shallow.post("/slots/0?action=save", {"filename": "a.bin"})[0] == 200
    answers, statuses = [], []
    asked = {"cache_prompt": False} if prefills else {"n_predict": 60, "ignore_eos": True}

    def ask() -> None:
        answers.append(shallow.complete(document, id_slot=0, **asked)["content"])

    def act(action: str) -> None:
        statuses.append(shallow.post(f"/slots/0?action={action}", {"filename": "a.bin"})[0])

    first = threading.Thread(target=ask)
    first.start()
    shallow.wait_until_busy(0)
    names = ("save", "restore", "erase", "save", "restore")
    threads = [threading.Thread(target=act, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    first.join()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * len(names) and answers[0].startswith(want)
    assert fresh(shallow, document) == want


def test_a_restored_slot_between_two_prompts_that_wait(shallow, document):
    other = [*document[100:], *document[:100]]
    wanted = {"document": fresh(shallow, document), "other": fresh(shallow, other)}
    shallow.complete(document, id_slot=0)
    assert shallow.post("/slots/0?action=save", {"filename": "b.bin"})[0] == 200
    prompts, rng = {"document": document, "other": other}, random.Random(17)
    for _ in range(3):
        found: dict[str, str] = {}

        def ask(name: str, found: dict[str, str] = found) -> None:
            found[name] = shallow.complete(prompts[name], id_slot=0)["content"]

        jobs = [
            partial(ask, "document"),
            partial(ask, "other"),
            lambda: shallow.post("/slots/0?action=restore", {"filename": "b.bin"}),
            lambda: shallow.post("/slots/0?action=erase", {}),
        ]
        rng.shuffle(jobs)
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == wanted


def test_broken_slot_files_are_refused_or_served_right(shallow, document, folder):
    """Cut off, bytes changed at the start and in what was pruned: no answer is another one than without the file."""
    want = fresh(shallow, document)
    shallow.complete(document, id_slot=0)
    assert shallow.post("/slots/0?action=save", {"filename": "c.bin"})[0] == 200
    whole, rng = (folder / "c.bin").read_bytes(), random.Random(5)
    trailer = whole.index(b"ASL\0") - 8  # two numbers, then this mark
    for i in range(30):
        broken = bytearray(whole)
        if i % 3 == 0:
            broken = broken[: rng.randrange(len(broken))]
        elif i % 3 == 1:
            for _ in range(rng.randrange(1, 4)):
                broken[rng.randrange(trailer)] = rng.randrange(256)
        else:
            number = rng.choice([-1, 0, 10, 2**31 - 1, rng.randrange(3000)])
            at = trailer + 4 * rng.randrange(2)
            broken[at : at + 4] = number.to_bytes(4, "little", signed=True)
        (folder / "broken.bin").write_bytes(bytes(broken))
        status = shallow.post("/slots/0?action=restore", {"filename": "broken.bin"})[0]
        assert status in (200, 400)
        answer = shallow.complete(document, id_slot=0)
        assert answer["content"] == want, (i, status, answer["asl"])
