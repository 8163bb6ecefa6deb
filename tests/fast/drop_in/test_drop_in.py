"""`pruned`: stand-ins for packages that look llama_cpp.Llama up when they need it, or once when they are imported."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from asl_gguf import Llama, OptionError, pruned
from asl_gguf.drop_in.pruned import DropInLlama, replaced
from harness import llama_cpp, prompt
from patience import PATIENCE
from tiny_llama import complete

STOCK = llama_cpp.Llama
LOOKED_UP = """
class Chat:
    def __init__(self, model_path, model_kwargs={}):
        from llama_cpp import Llama
        self.client = Llama(model_path, n_threads=1, n_threads_batch=1, verbose=False, n_parts=-1, **model_kwargs)
"""
BOUND = """
from llama_cpp import Llama
class Chat:
    def __init__(self, model_path, model_kwargs={}):
        self.client = Llama(model_path=model_path, n_threads=1, n_threads_batch=1, verbose=False, **model_kwargs)
"""


@pytest.fixture(params=[LOOKED_UP, BOUND], ids=["looked up", "bound"])
def package(request, monkeypatch) -> Iterator[Any]:
    module = ModuleType("asl_stand_in")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(request.param, vars(module))
    yield module
    assert llama_cpp.Llama is STOCK
    assert getattr(module, "Llama", STOCK) is STOCK


@pytest.fixture
def path(tiny_model) -> str:
    return str(tiny_model("llama"))


def assert_pruning(chat: Any, n_tokens: int, n_kept: int) -> None:
    assert isinstance(chat.client, (Llama, STOCK))
    complete(chat.client, prompt(n_tokens), 1)
    assert (chat.client.last_prefill.prompt_tokens, chat.client.last_prefill.kept_tokens) == (n_tokens, n_kept)
    chat.client.close()


def test_a_class_of_another_package(package, path):
    assert_pruning(pruned(package.Chat, asl_budget=0.2)(path), 400, 80)
    assert_pruning(pruned(package.Chat)(path, {"asl_budget": 0.5}), 400, 200)
    assert_pruning(pruned(package.Chat, asl_budget=0.2)(model_path=path, model_kwargs={"asl_budget": 0.5}), 400, 200)


def test_a_class_derived_from_it(package, path):
    class Mine(package.Chat):
        pass

    assert_pruning(pruned(Mine, asl_budget=0.2)(path), 400, 80)


def test_outside_of_a_call_nothing_is_replaced(package, path):
    make = pruned(package.Chat, asl_budget=0.2)
    assert llama_cpp.Llama is STOCK and make.__name__ == "Chat"
    make(path).client.close()
    theirs = package.Chat(path)
    assert type(theirs.client) is STOCK
    theirs.client.close()


def test_errors_come_out_and_leave_nothing_behind(package, path):
    with pytest.raises(TypeError):
        pruned(package.Chat, asl_budget=0.2)()
    with pytest.raises(OptionError, match="asl_budget: expected at least 17"):
        pruned(package.Chat, asl_budget=0.2)(path, {"asl_budget": 3})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"asl_budget": 2.0}, "asl_budget: expected a share"),
        ({"asl_bugdet": 0.2}, "asl_bugdet: expected one of asl_budget"),
        ({"n_ctx": 512}, "n_ctx: expected options that begin with asl_"),
    ],
)
def test_options_are_checked_before_anything_is_made(package, options, message):
    with pytest.raises(OptionError, match=message):
        pruned(package.Chat, **options)
    with pytest.raises(OptionError, match=message), replaced(package.Chat, **options):
        pass


def test_what_makes_no_llama_is_refused(path):
    """A silent answer from the full cache would be the worst of outcomes."""
    made: list[Any] = []
    with pytest.raises(OptionError, match=r"pruned: expected a callable that makes a llama_cpp.Llama, .*made none"):
        pruned(
            lambda: made.append(llama_cpp.llama.Llama(path, n_threads=1, n_threads_batch=1, verbose=False)),
            asl_budget=0.2,
        )()
    made[0].close()


def test_copies_keep_their_options(package, path):
    chat = pruned(package.Chat, asl_budget=0.2)(path)
    copy = pickle.loads(pickle.dumps(chat.client))
    chat.client = (chat.client.close(), copy)[1]
    assert_pruning(chat, 400, 80)


def test_scopes_within_scopes(package, path):
    with replaced(package.Chat, asl_budget=0.5) as outer:
        assert_pruning(pruned(package.Chat, asl_budget=0.2)(path), 400, 80)
        assert (llama_cpp.Llama, outer.n_made) == (DropInLlama, 0)
        assert_pruning(package.Chat(path), 400, 200)
        assert outer.n_made == 1


def test_another_thread_gets_stock_behaviour(package, path):
    """Its scope is its own, and the class is put back by the last scope that ends."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with replaced(package.Chat, asl_budget=0.5):
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert entered.wait(PATIENCE)
        chat = package.Chat(path)
        complete(chat.client, prompt(400), 1)
        assert chat.client.last_prefill.reason == "no budget"
        chat.client.close()
        assert_pruning(pruned(package.Chat, asl_budget=0.2)(path), 400, 80)
        assert llama_cpp.Llama is DropInLlama
    finally:
        leave.set()
        thread.join()


def test_tasks_of_a_server(package, path):
    """A server makes and changes its models in tasks and in threads of asyncio's."""

    async def serve() -> Any:
        return await asyncio.create_task(asyncio.to_thread(package.Chat, path))

    with replaced(package.Chat, asl_budget=0.2):
        chat = asyncio.run(serve())
    assert_pruning(chat, 400, 80)


def test_an_import_replaces_nothing():
    code = "import asl_gguf.drop_in, llama_cpp; print(llama_cpp.Llama.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == "llama_cpp.llama", done.stderr
