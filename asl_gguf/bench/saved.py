"""`asl-gguf bench saved`: a pruned prompt on disk beside stock's saved state and beside prefilling again."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..drop_in.llama import Llama
from ..models.named import resolve
from ..native.bindings import llama_cpp
from ..native.model import ContextOptions, Model
from .prefill import make_prompt

_ANSWER_TOKENS = 256


def bench_saved(
    name_or_path: str,
    options: ContextOptions,
    *,
    n_tokens: int,
    budget: float | int,
    policy: str,
    dequant: str,
    runs: int,
) -> dict[str, Any]:
    """Bytes on disk, and seconds until the next token can be sampled, alternating between the two."""
    path = str(resolve(name_or_path))
    model = Model(path, options)
    tokens = make_prompt(model, n_tokens)
    model.close()
    shared = options.to_kwargs(len(tokens) + _ANSWER_TOKENS)
    pruned: dict[str, Any] = {"asl_budget": budget, "asl_policy": policy, "asl_dequant": dequant, "asl_min_prompt": 0}
    ours = Llama(path, asl_calibration=False, **pruned, **shared)
    stock = llama_cpp.Llama(path, verbose=False, **shared)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(ours), contextlib.closing(stock):
        files = {"pruned": Path(folder) / "prompt", "stock": Path(folder) / "state"}
        actions = {
            "pruned": (
                lambda: ours.prefill(tokens),
                lambda: ours.save_prompt(files["pruned"]),
                lambda: ours.load_prompt(files["pruned"]),
            ),
            "stock": (
                lambda: stock.eval(tokens),
                lambda: files["stock"].write_bytes(pickle.dumps(stock.save_state())),
                lambda: _load_stock(stock, files["stock"], tokens[-1]),
            ),
        }
        seconds = _measure(actions, (ours, stock), runs)
        kept = ours.last_prefill.kept_tokens if ours.last_prefill else 0
        sizes = {f"{name}_bytes": file.stat().st_size for name, file in files.items()}
    return {"prompt_tokens": len(tokens), "kept_tokens": kept, **sizes, **seconds}


def _load_stock(llm: Any, file: Path, last_token: int) -> None:
    """Stock's state has no logits: the last token is evaluated again, as its generate() does."""
    llm.load_state(pickle.loads(file.read_bytes()))
    llm.n_tokens -= 1
    llm.eval([last_token])


def _measure(actions: Mapping[str, Sequence[Callable[[], Any]]], objects: Sequence[Any], runs: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, steps in actions.items():
            for llm in objects:
                llm.reset()
            for step, action in zip(("prefill", "save", "load"), steps, strict=True):
                started = time.perf_counter()
                action()
                seconds.setdefault(f"{name}_{step}_seconds", []).append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}
