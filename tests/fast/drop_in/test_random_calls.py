"""Random calls, one after another: with nothing pruned each gives what llama_cpp.Llama gives, whatever came before.

Without a cache: `generate` looks there, too, which the parent's does not, and then computes in other chunks.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama
from harness import llama_cpp, prompt
from tiny_gguf import write_model
from tiny_kinds import write_kind
from tiny_llama import READABLE, chat, complete, logits

pytestmark = pytest.mark.long

KINDS = ("llama", "gemma3", "delta-net", "shared-kv", "sparse-sliding", "kda")
STATES = ("delta-net", "kda")
WINDOWS = ("gemma3", "shared-kv", "sparse-sliding")
N_CTX, TEXT = 256, prompt(240)
Call = Callable[[Any], Any]


class Stop(Exception):
    """Of a callback."""


def raising(at: int) -> Callable[..., bool]:
    """A stopping criterion that raises when it is asked the at-th time."""
    n_asked = 0

    def criterion(ids: Any, scores: Any) -> bool:
        nonlocal n_asked
        n_asked += 1
        if n_asked == at:
            raise Stop
        return False

    return criterion


def until_raised(llm: Any, tokens: list[int], at: int) -> str:
    criteria = llama_cpp.StoppingCriteriaList([raising(at)])
    with pytest.raises(Stop):
        list(islice(llm.generate(tokens, temp=0.0, stopping_criteria=criteria), 8))
    return "raised"


def sent(llm: Any, tokens: list[int]) -> list[int]:
    """An answer of which the middle is thrown away by an exception."""
    stream = llm.generate(tokens, temp=0.0)
    answer = list(islice(stream, 3))
    with pytest.raises(Stop):
        stream.throw(Stop())
    return answer


def answered(llm: Any, text: str) -> str:
    """Readable: of a character that is not whole the parent waits for the rest, as long as it takes."""
    options = {"max_tokens": 2, "temperature": 0.0, "logit_bias": READABLE}
    return llm.create_chat_completion(chat(text), **options)["choices"][0]["message"]["content"]


class Talk:
    """What is said to one object."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.states: list[Any] = []

    def save(self) -> int:
        self.states.append(self.llm.save_state())
        return len(self.states)

    def load(self, i: int) -> int:
        if self.states:
            self.llm.load_state(pickle.loads(pickle.dumps(self.states[i % len(self.states)])))
        return int(self.llm.n_tokens)


def drawn(rng: random.Random, kind: str) -> Call:
    """A call of a `Talk`."""
    n, at, i = rng.randrange(1, 240), rng.randrange(1, 6), rng.randrange(4)
    tokens = TEXT[:n] if rng.random() < 0.6 else [*TEXT[: n // 2], *prompt(n - n // 2 + 1, seed=n)]
    calls: list[Call] = [
        lambda talk: list(islice(talk.llm.generate(tokens, temp=0.0), 5)),
        lambda talk: list(islice(talk.llm.generate(tokens, temp=0.0, repeat_penalty=1.4), 3)),
        lambda talk: sent(talk.llm, tokens),
        lambda talk: until_raised(talk.llm, tokens, at),
        lambda talk: complete(talk.llm, tokens, 4)["choices"][0]["text"],
        lambda talk: answered(talk.llm, "ab " * at),
        lambda talk: talk.llm.eval(tokens[:at]) if talk.llm.n_tokens + at <= N_CTX else None,
        lambda talk: talk.llm.reset(),
    ]
    if kind not in WINDOWS:  # the parent goes back behind the window that a state holds, and answers from what is gone
        calls += [lambda talk: talk.save(), lambda talk: talk.load(i)]
    if kind not in STATES:
        calls.append(lambda talk: setattr(talk.llm, "n_tokens", max(0, talk.llm.n_tokens - at)))
    return rng.choice(calls)


@pytest.fixture(scope="module", params=KINDS)
def path(request, tmp_path_factory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    if request.param in ("llama", "gemma3"):
        write_model(file, request.param)
    else:
        write_kind(file, request.param, text=True)
    yield str(file)
    file.unlink()


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(path, seed):
    kind = Path(path).stem
    rng = random.Random(f"{kind} {seed}")
    options = {
        "n_ctx": N_CTX, "n_batch": rng.choice([1, 7, 64]), "n_ubatch": rng.choice([3, 32]), "flash_attn": rng.random() < 0.5,
        "n_threads": 1, "n_threads_batch": 1, "use_mmap": rng.random() < 0.5, "verbose": False,
    }  # fmt: skip
    with closing(Llama(path, **options, asl_budget=1.0, asl_dequant=False)) as llm:
        with closing(llama_cpp.Llama(path, **options)) as stock:
            talks = [Talk(llm), Talk(stock)]
            for n_calls in range(10):
                state = rng.getstate()
                found = []
                for talk in talks:
                    rng.setstate(state)
                    found.append(drawn(rng, kind)(talk))
                assert found[0] == found[1], n_calls
                assert llm.n_tokens == stock.n_tokens, n_calls
                if isinstance(found[0], (list, str)):  # something was evaluated
                    assert np.array_equal(logits(llm), logits(stock)), n_calls
