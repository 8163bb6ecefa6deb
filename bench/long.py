"""A long prompt through the whole of `Llama`: CPU seconds and memory of each step, one thread.

    python bench/gpu/write_model.py long /tmp/long.gguf --mix q8_0
    python bench/long.py /tmp/long.gguf --tokens 131072
    python bench/long.py /tmp/long.gguf --tokens 131072 --full-kv on   # K/V of all tokens on the host: on, q8_0
    python bench/long.py /tmp/long.gguf --tokens 131072 --budgets      # what budgets that follow a goal keep

The memory of a step is the process's peak in it and what is left after it, over what there was before the model was loaded
(Linux). The policy selects in the first layer, for random weights settle on nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from asl_gguf import Llama
from asl_gguf.eval.demo_text import make_document

_T = TypeVar("_T")
POLICY = "fastkv:tsp_layer=0"
ROOM = 3000
"""tokens of n_ctx for questions, turns and answers"""


def memory(name: str) -> int:
    """Bytes that the system says of this process: VmRSS, or VmHWM, the most since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Steps:
    """Steps, printed as they end."""

    def __init__(self) -> None:
        self._before = memory("VmRSS")

    def run(self, name: str, work: Callable[[], _T], note: Callable[[_T], object] = lambda _: "") -> _T:
        forget_peak()
        began = time.process_time()
        result = work()
        seconds = time.process_time() - began
        peak, left = ((memory(what) - self._before) / 2**20 for what in ("VmHWM", "VmRSS"))
        print(f"{name:32} {seconds:8.2f} s {peak:8.0f} MiB {left:8.0f} MiB  {note(result)}", flush=True)
        return result


def answer(llm: Llama, tokens: list[int] | str) -> Any:
    return llm.create_completion(tokens, max_tokens=4, temperature=0.0)


def text_of(llm: Llama, n_tokens: int) -> str:
    """A document of about so many tokens: a shorter one again and again, for making one counts its tokens some twenty times."""
    n_parts = 16
    part = make_document(lambda text: len(llm.tokenize(text.encode(), add_bos=False)), n_tokens // n_parts - 10).text
    return "\n\n".join([part] * n_parts)


def through_all(steps: Steps, make: Callable[..., Llama], n_tokens: int, folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    llm = steps.run("load", lambda: make(asl_progress=lambda *call: calls.append(call)))
    text = steps.run(
        "write a document", lambda: text_of(llm, n_tokens - ROOM), lambda text: f"{len(text):,} characters"
    )
    tokens = steps.run("tokenise it", lambda: llm.tokenize(text.encode()), lambda ids: f"{len(ids):,} tokens")
    steps.run("question 1, as text", lambda: answer(llm, text), lambda _: llm.last_prefill)
    print(f"{'':32} {len(calls)} calls of asl_progress, the last one {calls[-1]}")
    longer = [*llm._text.text(), *tokens[1:1001]]
    steps.run("a turn of 1,000 tokens", lambda: answer(llm, longer), lambda _: llm.last_prefill)
    state = steps.run("save_state", llm.save_state, lambda state: f"{len(state.llama_state) / 2**20:.1f} MiB")
    steps.run("load_state", lambda: llm.load_state(state))
    save_and_load(steps, llm, folder)
    llm.close()
    interrupt(make(), tokens)


def under_budgets(steps: Steps, make: Callable[..., Llama], n_tokens: int) -> None:
    for budget, policy in (("fit:64MiB", POLICY), ("ttft:60s", POLICY), ("auto", "asl")):
        llm = make(asl_budget=budget, asl_policy=policy)
        tokens = llm.tokenize(text_of(llm, n_tokens - ROOM).encode())
        steps.run(
            budget, lambda llm=llm, ids=tokens: answer(llm, ids), lambda _, llm=llm: llm.last_prefill.budget_choice
        )
        llm.close()


def save_and_load(steps: Steps, llm: Llama, folder: Path) -> None:
    path = folder / "prompt.npz"
    steps.run("save_prompt", lambda: llm.save_prompt(path), lambda _: f"{path.stat().st_size / 2**20:.1f} MiB")
    steps.run("load_prompt", lambda: llm.load_prompt(path))


def with_full_kv(steps: Steps, make: Callable[..., Llama], n_tokens: int, folder: Path, full_kv: bool | str) -> None:
    llm = make(asl_full_kv=full_kv)
    tokens = llm.tokenize(text_of(llm, n_tokens - ROOM).encode())
    for name, at in (("question 1", 50), ("question 2", 150), ("question 3", 250)):
        ask = tokens + tokens[at : at + 40]
        host = steps.run(name, lambda ask=ask: answer(llm, ask) and llm.last_prefill.full_kv_bytes)
        print(f"{'':32} {host / 2**20:.1f} MiB of it on the host")
    save_and_load(steps, llm, folder)
    other = [tokens[0], *tokens[1000:], *tokens[1:1000]]
    steps.run("another document", lambda: answer(llm, other))
    llm.close()


def interrupt(llm: Llama, tokens: list[int]) -> None:
    """Wall-clock seconds from Ctrl-C to its arrival at the caller."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background jobs ignore it
    sent: list[float] = []

    def press() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(2.0, press)
    timer.start()
    try:
        answer(llm, tokens)
        print("Ctrl-C came too late")
    except KeyboardInterrupt:
        print(f"Ctrl-C: {1000 * (time.perf_counter() - sent[0]):.0f} ms (wall clock)")
    finally:
        timer.cancel()
        llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=131072, help="n_ctx (default %(default)s)")
    parser.add_argument(
        "--full-kv", choices=("on", "q8_0"), help="three questions about one document, and another document"
    )
    parser.add_argument("--budgets", action="store_true", help="a size, a time and auto, in place of all this")
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("expected Linux, whose /proc tells memory")
    options = {"asl_budget": 0.1, "asl_policy": POLICY, "n_threads": 1, "n_threads_batch": 1, "verbose": False}

    def make(**more: Any) -> Llama:
        return Llama(args.model, n_ctx=args.tokens, **{**options, **more})

    steps = Steps()
    print(f"{'':32} {'CPU':>10} {'most':>12} {'left':>12}")
    with tempfile.TemporaryDirectory() as folder:
        if args.budgets:
            under_budgets(steps, make, args.tokens)
        elif args.full_kv:
            with_full_kv(steps, make, args.tokens, Path(folder), True if args.full_kv == "on" else args.full_kv)
        else:
            through_all(steps, make, args.tokens, Path(folder))


if __name__ == "__main__":
    main()
