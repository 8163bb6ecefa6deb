"""transformers and kvpress, asked over pipes: one JSON request a line on stdin, one JSON answer a line on stdout.

Runs in an environment of its own (requirements.txt) and knows nothing of asl_gguf: prompts and reference texts come
as token ids. The model is the GGUF file, dequantised to float32 by transformers.

    {"call": "load", "path": ..., "n_threads": 1, "attention": "sdpa"}
    {"call": "answers", "tokens": [...], "reference": [...], "max_new_tokens": 16, "eog": [2],
     "wanted": [{"press": null, "n_kept": 1024}, {"press": "snapkv:window_size=32", "n_kept": 102}]}
    {"call": "time", "tokens": [...], "press": ..., "n_kept": ...}
    {"call": "logits", "tokens": [...]}
    {"call": "shared_equals_own", "tokens": [...], "wanted": [...]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvpress
import torch
import transformers
from kvpress.presses.base_press import BasePress
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES = {"snapkv": kvpress.SnapKVPress, "streaming_llm": kvpress.StreamingLLMPress}

Rows = tuple[torch.Tensor, torch.Tensor]
"""keys and values of a layer, [1, n_head_kv, n_kept, head_dim]"""


@dataclass
class Several(BasePress):
    """Presses whose choices do not change the pass itself: one prefill serves them all, and its own cache stays whole."""

    presses: Sequence[BasePress]
    kept: list[list[Rows]] = field(default_factory=list)
    """by press, by layer"""

    def __post_init__(self) -> None:
        self.kept = [[] for _ in self.presses]

    def compress(self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Rows:
        for press, rows in zip(self.presses, self.kept):
            rows.append(press.compress(module, hidden_states, keys, values, attentions, kwargs))
        return keys, values


def make_press(text: str, n_tokens: int, n_kept: int) -> BasePress:
    """kvpress's own class, from name:parameter=value:...; its ratio is the one that keeps n_kept of n_tokens rows.

    kvpress keeps int(n_tokens * (1 - compression_ratio)): half a token more stands against rounding.
    """
    name, *parameters = text.split(":")
    if name not in PRESSES:
        raise ValueError(f"expected a press among {', '.join(PRESSES)}, got {name!r}")
    values = {key: int(value) for key, value in (parameter.split("=") for parameter in parameters)}
    return PRESSES[name](compression_ratio=max(0.0, 1 - (n_kept + 0.5) / n_tokens), **values)


class Worker:
    """The model and what is asked of it."""

    model: Any

    def load(self, path: str, n_threads: int, attention: str) -> dict[str, Any]:
        torch.set_num_threads(n_threads)
        torch.set_grad_enabled(False)
        file = Path(path)
        self.model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, attn_implementation=attention
        ).eval()
        names = {"torch": torch, "transformers": transformers}
        versions = {name: module.__version__ for name, module in names.items()}
        return {"versions": versions | {"kvpress": _version("kvpress"), "python": sys.version.split()[0]},
                "n_layer": self.model.config.num_hidden_layers}  # fmt: skip

    def answers(
        self,
        tokens: list[int],
        reference: list[int],
        max_new_tokens: int,
        eog: list[int],
        wanted: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """What each wanted cache goes on to write, and how it rates the reference text; the first is the full cache."""
        several, cache, first = self._shared(tokens, wanted)
        made, full = [], None
        for want in wanted:
            rows = None if want["press"] is None else several.kept.pop(0)
            pruned = cache if rows is None else DynamicCache(rows)
            n_rows = pruned.get_seq_length()
            if n_rows != want["n_kept"]:
                raise ValueError(f"expected {want['n_kept']} rows of {want['press']}, got {n_rows}")
            logits = self._forced(pruned, len(tokens), first, reference)
            pruned.crop(n_rows)
            full = logits if full is None else full
            written, n_decoded, seconds = self._greedy(pruned, len(tokens), first, max_new_tokens, eog)
            pruned.crop(n_rows)
            made.append(
                _rating(logits, full, reference)
                | {"tokens": written, "decode_tokens": n_decoded, "decode_seconds": round(seconds, 4)}
                | {"kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in pruned.layers)}
            )
        return made

    def time(self, tokens: list[int], press: str | None, n_kept: int) -> dict[str, Any]:
        """Seconds of a prefill of its own, pruning included, to the first logits."""
        wall, cpu = time.perf_counter(), time.process_time()
        cache, _ = self._prefill(tokens, press, n_kept)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "n_rows": cache.get_seq_length()}

    def logits(self, tokens: list[int]) -> list[float]:
        """Of the last token."""
        return self._prefill(tokens, None, len(tokens))[1].tolist()

    def shared_equals_own(self, tokens: list[int], wanted: list[dict[str, Any]]) -> bool:
        """Whether the shared prefill gives each press the rows that a prefill of its own keeps, bit for bit."""
        several, _, first = self._shared(tokens, wanted)
        for want in wanted:
            if want["press"] is None:
                continue
            cache, logits = self._prefill(tokens, want["press"], want["n_kept"])
            rows = several.kept.pop(0)
            same = all(
                torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
                for layer, (keys, values) in zip(cache.layers, rows, strict=True)
            )
            if not same or not torch.equal(logits, first):
                return False
        return True

    def _shared(self, tokens: list[int], wanted: list[dict[str, Any]]) -> tuple[Several, Any, torch.Tensor]:
        pruned = [want for want in wanted if want["press"] is not None]
        several = Several([make_press(want["press"], len(tokens), want["n_kept"]) for want in pruned])
        cache = DynamicCache()
        with several(self.model):
            first = self._run(cache, tokens, 0)[-1]
        return several, cache, first

    def _prefill(self, tokens: list[int], press: str | None, n_kept: int) -> tuple[Any, torch.Tensor]:
        """The cache, and the last token's logits [n_vocab]."""
        cache = DynamicCache()
        if press is None:
            return cache, self._run(cache, tokens, 0)[-1]
        with make_press(press, len(tokens), n_kept)(self.model):
            return cache, self._run(cache, tokens, 0)[-1]

    def _run(self, cache: Any, tokens: Sequence[int], n_past: int, n_logits: int = 1) -> torch.Tensor:
        """Logits [n_logits, n_vocab] of the last tokens, which stand at positions n_past on whatever was pruned."""
        positions = torch.arange(n_past, n_past + len(tokens)).unsqueeze(0)
        return self.model(
            input_ids=torch.tensor([tokens]), past_key_values=cache, position_ids=positions, logits_to_keep=n_logits
        ).logits[0]

    def _forced(self, cache: Any, n_past: int, first: torch.Tensor, reference: list[int]) -> torch.Tensor:
        """Logits at each of the reference's tokens, [n, n_vocab]: after the prompt, and after those before."""
        if len(reference) == 1:
            return first[None]
        return torch.cat([first[None], self._run(cache, reference[:-1], n_past, len(reference) - 1)])

    def _greedy(
        self, cache: Any, n_past: int, row: torch.Tensor, n_tokens: int, eog: list[int]
    ) -> tuple[list[int], int, float]:
        """The tokens, how many were decoded one by one, and the seconds that took."""
        started = time.perf_counter()
        tokens: list[int] = []
        while len(tokens) < n_tokens:
            token = int(row.argmax())
            if token in eog:
                break
            tokens.append(token)
            if len(tokens) < n_tokens:
                row = self._run(cache, [token], n_past + len(tokens) - 1)[-1]
        return tokens, max(0, len(tokens) - 1), time.perf_counter() - started


def _rating(logits: torch.Tensor, full: torch.Tensor, reference: list[int]) -> dict[str, float]:
    """As asl_gguf.eval.measure defines them, in float64."""
    q, p = (torch.log_softmax(rows.double(), dim=-1) for rows in (logits, full))
    likeliest, wanted = logits.argmax(dim=-1), torch.tensor(reference)
    return {
        "nll": -float(q.gather(1, wanted[:, None]).mean()),
        "token_accuracy": float((likeliest == wanted).double().mean()),
        "kl": max(0.0, float((p.exp() * (p - q)).sum(dim=-1).mean())),
        "top1_agreement": float((likeliest == full.argmax(dim=-1)).double().mean()),
    }


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def main() -> None:
    """Answers requests until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not get between the answers
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        result = getattr(worker, request.pop("call"))(**request)
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
