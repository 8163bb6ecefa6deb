"""Passages of a document: how it is cut, which are taken, and where the document stands in a task's prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asl_gguf.errors import OptionError
from asl_gguf.eval.tasks import Example

Count = Callable[[str], int]
"""tokens of a text"""

_BOUNDARIES = (r"(?=\n\s*\n)", r"(?=\n)", r"(?<=[.!?])(?=\s)", r"(?<=[,;])(?=\s)", r"(?<=\S)(?=\s)")
"""where a text may be cut: paragraphs, lines, sentences, parts of sentences, words. The earlier, the rather"""
_BEFORE = (
    "afterwards.\n",
    "information there.\n",
    "ask about it.\n\n",
    "following text.\n\n",
    "given documents.\n\n",
    "|---|\n",
)
"""how the instructions before a document end"""
_AFTER = "\n\nAnswer the question based"
"""how qa_1's instructions behind the documents begin"""
_SHOTS = frozenset({"multikey", "keyvalue", "uuid_kv", "function", "identifier", "table", "records"})
"""tasks that show answers to other questions between the document and the question, a line each"""


def parts(example: Example) -> tuple[str, str, str]:
    """A prompt as what comes before the document, the document, and what comes behind it: the question at least."""
    prompt = example.prompt
    begin = max(prompt.rfind(text) + len(text) if text in prompt else 0 for text in _BEFORE)
    begin = begin or int(prompt[0] in "{[")
    asked = prompt.rfind(example.question)
    if not example.question or asked < begin:
        raise OptionError(f"expected a task that asks about a text, got {example.task}; choose another one")
    if example.task in _SHOTS:
        end = prompt.rfind("\n\n", begin, asked)
    else:
        end = prompt.rfind(_AFTER, begin) if _AFTER in prompt else asked
        end = len(prompt[:end].rstrip())
    return prompt[:begin], prompt[begin:end], prompt[end:]


def cut(text: str, most: int, count: Count, boundaries: Sequence[str] = _BOUNDARIES) -> list[str]:
    """Passages of at most `most` tokens (a longer word is one); joined they are the text."""
    if not boundaries or count(text) <= most:
        return [text] if text else []
    passages: list[str] = []
    for piece in re.split(boundaries[0], text):
        for part in cut(piece, most, count, boundaries[1:]):
            if passages and count(passages[-1] + part) <= most:
                passages[-1] += part
            else:
                passages.append(part)
    return passages


def take(passages: Sequence[str], order: Sequence[int], n_tokens: int, count: Count) -> str:
    """The passages that come first in `order` and fit into n_tokens, one after the other as in the document."""
    sizes = [count(passage) for passage in passages]
    chosen: list[int] = []
    for place in order:
        more = sorted([*chosen, place])
        # the sum first, as it costs nothing; the text's own count may differ from it
        if sum(sizes[i] for i in more) <= n_tokens and count("".join(passages[i] for i in more)) <= n_tokens:
            chosen = more
    return "".join(passages[i] for i in chosen)


def from_ends(n: int) -> list[int]:
    """The first, the last, the second, the last but one, ..."""
    return [i // 2 if i % 2 == 0 else n - 1 - i // 2 for i in range(n)]


def by_bm25(question: str, passages: Sequence[str]) -> list[int]:
    """Places of the passages, the best first, equals as they stand: bm25s with its own defaults (Lucene's BM25, k1 1.5,
    b 0.75), its English stop words and Snowball's stemmer, as its documentation recommends."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def words(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)

    (asked,), corpus = words([question]), words(list(passages))
    known = {word for of_passage in corpus for word in of_passage}
    asked = [word for word in asked if word in known]
    if not asked:
        return list(range(len(passages)))
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return np.argsort(-index.get_scores(asked), kind="stable").tolist()


class Embedder:
    """A sentence-transformers model as ONNX: mean of the last hidden states, cosine."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()
        self._model = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._inputs = {one.name for one in self._model.get_inputs()}

    def __call__(self, question: str, passages: Sequence[str]) -> list[int]:
        """As by_bm25."""
        vectors = self._embed([question, *passages])
        return np.argsort(-(vectors[1:] @ vectors[0]), kind="stable").tolist()

    def _embed(self, texts: list[str]) -> np.ndarray:
        read = self._tokenizer.encode_batch(texts)
        mask = np.array([one.attention_mask for one in read], dtype=np.int64)
        given = {"input_ids": np.array([one.ids for one in read], dtype=np.int64), "attention_mask": mask}
        given["token_type_ids"] = np.zeros_like(mask)
        hidden = self._model.run(None, {name: value for name, value in given.items() if name in self._inputs})[0]
        means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return means / np.linalg.norm(means, axis=1, keepdims=True)
