"""One call of each public method of `Llama` that enters its context or its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_llama import DOCUMENT, QUESTIONS, chat

ASKED = DOCUMENT + QUESTIONS[0]
CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "__call__": lambda llm, folder: llm("On day 3", max_tokens=2),
    "create_completion": lambda llm, folder: llm.create_completion("On day 3", max_tokens=2),
    "stream": lambda llm, folder: list(llm.create_completion("On day 3", max_tokens=2, stream=True)),
    "create_chat_completion": lambda llm, folder: llm.create_chat_completion(chat("On day 3"), max_tokens=2),
    "create_chat_completion_openai_v1": lambda llm, folder: llm.create_chat_completion_openai_v1(chat("On day 3")),
    "generate": lambda llm, folder: next(llm.generate([70])),
    "eval": lambda llm, folder: llm.eval([70]),
    "sample": lambda llm, folder: llm.sample(),
    "embed": lambda llm, folder: llm.embed("On day 3"),
    "create_embedding": lambda llm, folder: llm.create_embedding("On day 3"),
    "reset": lambda llm, folder: llm.reset(),
    "save_state": lambda llm, folder: llm.save_state(),
    "load_state": lambda llm, folder: llm.load_state(None),
    "prefill": lambda llm, folder: llm.prefill(ASKED),
    "save_prompt": lambda llm, folder: llm.save_prompt(folder / "prompt"),
    "load_prompt": lambda llm, folder: llm.load_prompt(folder / "prompt"),
    "set_progress": lambda llm, folder: llm.set_progress(None),
}
OF_THE_MODEL: dict[str, Callable[[Any, Path], Any]] = {
    "tokenize": lambda llm, folder: llm.tokenize(b"On day 3"),
    "detokenize": lambda llm, folder: llm.detokenize([70]),
    "n_ctx": lambda llm, folder: llm.n_ctx(),
    "n_embd": lambda llm, folder: llm.n_embd(),
    "n_vocab": lambda llm, folder: llm.n_vocab(),
    "n_cells": lambda llm, folder: llm.n_cells,
    "token_bos": lambda llm, folder: llm.token_bos(),
    "token_eos": lambda llm, folder: llm.token_eos(),
    "token_nl": lambda llm, folder: llm.token_nl(),
    "tokenizer": lambda llm, folder: llm.tokenizer(),
    "pooling_type": lambda llm, folder: llm.pooling_type(),
}
