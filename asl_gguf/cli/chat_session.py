"""A conversation with a model: its messages, the documents for the next question, and what its prefills kept.

Nothing here reads from the user or prints; asl_gguf/cli/chat.py does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..budget.targets import BudgetValue
from ..drop_in.llama import Llama
from ..drop_in.options import AslOptions
from ..errors import AslError, NativeError, OptionError, PromptError
from ..models.files import replacing
from ..native import vocabulary
from ..native.session import Progress
from ..report import DecodeReport, PrefillReport
from .documents import read_plain

_ROLES = ("system", "user", "assistant")

Message = dict[str, str]


class ChatSession:
    """Asks questions one after the other; each one is answered from the whole conversation so far.

    Args:
        model: GGUF file or name of a pulled model.
        budget: `asl_budget`; `set_budget` replaces it.
        llama_options: further keyword arguments of `Llama`.
        answer_options: keyword arguments of `Llama.create_chat_completion`.
        system: text of the system message; None: there is none.
        prepare: is called with each `Llama` that is loaded.

    Raises:
        AslError: as `Llama` does.
    """

    messages: list[Message]
    """the conversation: role and content of each message"""
    report: PrefillReport | None = None
    """of the last prompt; None before the first one"""
    speed: DecodeReport | None = None
    """of the last answer; None before the first one"""

    def __init__(
        self,
        model: str,
        budget: BudgetValue | None,
        llama_options: dict[str, Any],
        answer_options: dict[str, Any],
        system: str | None = None,
        prepare: Callable[[Llama], None] = lambda _: None,
    ) -> None:
        self._model = model
        self._prepare = prepare
        self._budget = budget
        self._llama_options = llama_options
        self._answer_options = answer_options
        self._system = system
        self._documents: list[str] = []  # texts for the next question
        self._kept: tuple[list[int], tuple[int, ...]] = ([], ())  # prompt and selected indices of a pruned prefill
        self._llm: Llama | None = None
        self.clear()
        self.load_model()

    def load_model(self) -> Llama:
        """The model, loaded unless it is already."""
        if self._llm is None:
            # no memory for the cache
            with _typed(NativeError, "a context for this budget and n_ctx"):
                self._llm = Llama(self._model, asl_budget=self._budget, **self._llama_options)
            self._prepare(self._llm)
        return self._llm

    def close(self) -> None:
        """Frees the model; the next question loads it again."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.close()

    @property
    def n_ctx(self) -> int:
        """Longest prompt + answer in tokens."""
        return self.load_model().n_ctx()

    @property
    def budget(self) -> BudgetValue | None:
        """`asl_budget`."""
        return self._budget

    def set_budget(self, budget: BudgetValue | None) -> None:
        """Loads the model anew under another budget; the conversation goes on.

        Raises:
            OptionError: the budget is out of its domain; the old one stays.
        """
        asl_options = {name: value for name, value in self._llama_options.items() if name.startswith("asl_")}
        AslOptions.parse(budget, asl_options)
        before, self._budget = self._budget, budget
        # first, so that two models need not fit into memory
        self.close()
        try:
            self.load_model()
        except OptionError:  # a goal that this model does not reach
            self._budget = before
            raise

    def add_document(self, text: str) -> int:
        """Puts a text in front of the next question. Returns its length in tokens."""
        n_tokens = len(vocabulary.tokenize(self.load_model().model, text))
        self._documents.append(text)
        return n_tokens

    def ask(self, question: str, show: Callable[[str], None], progress: Progress | None = None) -> bool:
        """Answers a question from the conversation. Ctrl-C ends the answer; what was shown of it stays.

        Args:
            show: is called with each part of the answer as it comes.
            progress: as `asl_progress`, for this question.

        Returns:
            whether the answer is complete

        Raises:
            PromptError: the model cannot take this conversation: it is too long, or not what the template expects.
            AslError: as `Llama` does.
            KeyboardInterrupt: before anything of the answer was shown.
            After an error the conversation and the documents are as they were.
        """
        turn = {"role": "user", "content": "\n\n".join([*self._documents, question])}
        llm = self.load_model()
        n_held, parts, complete = llm.n_tokens, [], True
        try:
            with contextlib.closing(self._answer(llm, [*self.messages, turn], progress)) as answer:
                for part in answer:
                    parts.append(part)
                    show(part)
        except KeyboardInterrupt:
            if not parts:
                # it came between any two steps: what the cache holds may not be what the object believes
                if llm.n_tokens != n_held:
                    llm.reset()
                raise
            complete = False
        self.messages = [*self.messages, turn, {"role": "assistant", "content": "".join(parts)}]
        self._documents = []
        self.speed = llm.last_decode
        return complete

    def _answer(self, llm: Llama, messages: list[Any], progress: Progress | None) -> Generator[str, None, None]:
        """The parts of the answer that have text in them."""

        llm.set_progress(progress)
        # a prompt that is too long for the full cache, a template that refuses a role
        with _typed(PromptError, "a conversation that the model can answer"):
            chunks: Any = llm.create_chat_completion(messages, stream=True, **self._answer_options)
            for i, chunk in enumerate(chunks):
                if i == 0:
                    self._note(llm)
                if text := chunk["choices"][0]["delta"].get("content"):
                    yield text

    def _note(self, llm: Llama) -> None:
        """Remembers what the prefill kept: turns that go on from it, and another budget, replace the report."""
        assert llm.last_prefill is not None
        self.report = llm.last_prefill
        if self.report.pruned and self.report.token_layers:  # 0: llama_cpp evaluated what is new
            self._kept = (llm.input_ids[: self.report.prompt_tokens].tolist(), self.report.selected)

    def kept_text(self) -> str:
        """Text of the prompt tokens that the last pruned prefill kept, ` ... ` where others were dropped.

        Empty if no prefill has dropped tokens.
        """
        tokens, selected = self._kept
        if not selected:
            return ""
        model = self.load_model().model
        index = np.array(selected)
        runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
        texts = [b"".join(vocabulary.piece(model, tokens[i]) for i in run.tolist()) for run in runs]
        return " ... ".join(text.decode("utf-8", "replace") for text in texts)

    def clear(self) -> None:
        """Forgets the conversation and the documents; the system message stays."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self._documents = []

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON.

        Raises:
            OptionError: the file cannot be written; an older one is as it was.
        """
        try:
            with replacing(path) as file:
                text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n"
                file.write(text.encode("utf-8"))
        except (OSError, UnicodeError) as err:
            raise OptionError(f"expected a file that can be written, got {path}: {err}") from err

    def load(self, path: Path) -> None:
        """Goes on from a conversation that `save` has written, in place of this one.

        Raises:
            PromptError: the file is missing, or holds something else.
        """
        text = read_plain(path)
        try:
            self.messages = _parse(text)
        except (ValueError, KeyError, TypeError) as err:
            raise PromptError(
                f'expected a conversation such as {{"messages": [{{"role": "user", "content": "..."}}]}} in {path}, '
                f"got {type(err).__name__}: {err}"
            ) from err


@contextlib.contextmanager
def _typed(kind: type[AslError], expected: str) -> Iterator[None]:
    """Gives llama_cpp's own errors a type of ours."""
    try:
        yield
    except AslError:
        raise
    except (ValueError, RuntimeError) as err:
        raise kind(f"expected {expected}, got: {' '.join(str(err).split())}") from err


def _parse(text: str) -> list[Message]:
    """The messages of a saved conversation. Raises ValueError, KeyError or TypeError for what `save` does not write."""
    messages = json.loads(text)["messages"]
    if not isinstance(messages, list):
        raise TypeError("messages that are no list")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError("a message that is not a role and a content")
        if message["role"] not in _ROLES or not isinstance(message["content"], str):
            raise ValueError(f"a role that is none of {', '.join(_ROLES)}, or a content that is no text")
    return messages
