"""`asl_protect`: tokens of a prompt that are kept whatever their scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError, PromptError, shown
from .contract import Indices

Place = tuple[int, int]
"""(begin, end) in bytes"""

Protected = str | tuple[int, int] | re.Pattern[str] | list[Any] | None
"""what users give: a role, a (begin, end) pair of token indices, a compiled pattern, or a list of these"""

ROLES = ("system", "tools", "question")
"""parts of a chat: system messages; all that comes before the first user message, where templates put tool
definitions; the last user message"""


@dataclass(frozen=True)
class Protection:
    """What to protect of every prompt."""

    roles: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    """(begin, end) in tokens, as in a slice"""
    patterns: tuple[re.Pattern[str], ...] = ()
    """every match in the prompt's text"""

    @classmethod
    def parse(cls, value: Any) -> Protection:
        """Reads a role, a (begin, end) pair, a compiled pattern, or a list of these.

        Raises:
            OptionError: an item is none of them.
        """
        if value is None:
            return cls()
        items = value if isinstance(value, list) else [value]
        roles, spans, patterns = [], [], []
        for item in items:
            if isinstance(item, str) and item in ROLES:
                roles.append(item)
            elif isinstance(item, re.Pattern) and isinstance(item.pattern, str):
                patterns.append(item)
            elif isinstance(item, tuple) and len(item) == 2 and all(map(_is_index, item)):
                spans.append((int(item[0]), int(item[1])))
            else:
                raise OptionError(
                    f"asl_protect: expected {', '.join(map(repr, ROLES))}, a (begin, end) pair of token indices, a "
                    f"compiled regular expression, or a list of these, got {shown(item)}"
                )
        return cls(tuple(roles), tuple(spans), tuple(patterns))

    def __bool__(self) -> bool:
        return bool(self.roles or self.spans or self.patterns)

    def to_list(self) -> list[Any]:
        """What `parse` makes it from."""
        return [*self.roles, *self.spans, *self.patterns]

    def indices(self, n_tokens: int, pieces: Callable[[], Sequence[bytes]], messages: Sequence[Any] | None) -> Indices:
        """Increasing indices of the protected tokens.

        Args:
            pieces: the bytes of each token.
            messages: of the chat whose prompt this is; None outside a chat.

        Raises:
            PromptError: a message of a protected role does not stand in the prompt as it was given.
        """
        found = [np.arange(n_tokens)[slice(*span)] for span in self.spans]
        if self.patterns or (self.roles and messages):
            parts = pieces()
            starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
            text = b"".join(parts)
            ranges = [*self._matches(text), *self._messages(text, messages or ())]
            for begin, end in ranges:
                if begin == end:  # an empty match or message
                    continue
                first = np.searchsorted(starts, begin, side="right") - 1
                found.append(np.arange(first, np.searchsorted(starts, end, side="left")))
        kept = np.unique(np.concatenate(found)) if found else np.empty(0)
        return kept[kept < n_tokens].astype(np.int32)

    def _matches(self, text: bytes) -> Iterator[tuple[int, int]]:
        decoded = text.decode("utf-8", "surrogateescape")
        for pattern in self.patterns:
            n_done = begin = 0  # characters and bytes: a long text with many matches is walked through once
            for match in pattern.finditer(decoded):
                begin += _n_bytes(decoded[n_done : match.start()])
                n_done = match.start()
                yield begin, begin + _n_bytes(match[0])

    def _messages(self, text: bytes, messages: Iterable[Any]) -> Iterator[tuple[int, int]]:
        chat = [(message["role"], content_of(message)) for message in messages]
        if "system" in self.roles:
            for place in _in_order(text, [content for role, content in chat if role == "system"]):
                yield _found(place, "system")
        turns = [(role, content) for role, content in chat if role != "system"]
        users = [index for index, (role, _) in enumerate(turns) if role == "user"]
        if users and ("tools" in self.roles or "question" in self.roles):
            places = _from_the_end(text, [content for _, content in turns])
            if "tools" in self.roles:
                yield 0, _found(places[users[0]], "first user")[0]
            if "question" in self.roles:
                yield _found(places[users[-1]], "last user")


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _is_index(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def content_of(message: Any) -> str:
    """The text of a chat message, which may come in parts."""
    content = field_of(message, "content") or ""
    if isinstance(content, str):
        return content
    return "".join(field_of(part, "text") or "" for part in content if field_of(part, "type") == "text")


def field_of(message: Any, name: str) -> Any:
    """Of a chat message or a part of one, a dict or an object; None: it has none."""
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def _in_order(text: bytes, contents: Sequence[str]) -> list[Place | None]:
    """Where each message stands, behind the ones before it; None: not as it was given."""
    places: list[Place | None] = []
    end = 0
    for content in contents:
        wanted = content.strip().encode("utf-8")
        begin = text.find(wanted, end)
        places.append((begin, begin + len(wanted)) if begin >= 0 else None)
        end = end if begin < 0 else begin + len(wanted)
    return places


def _from_the_end(text: bytes, contents: Sequence[str]) -> list[Place | None]:
    """The same, found from the last message on: what templates add, such as tool definitions, stands at the start and
    may have a short message's words in it. Without system messages, which templates move."""
    places: list[Place | None] = []
    end = len(text)
    for content in reversed(contents):
        wanted = content.strip().encode("utf-8")
        begin = text.rfind(wanted, 0, end)
        places.append((begin, begin + len(wanted)) if begin >= 0 else None)
        end = end if begin < 0 else begin
    return places[::-1]


def _found(place: Place | None, what: str) -> Place:
    if place is None:
        raise PromptError(
            f"asl_protect: expected the {what} message to stand in the prompt as it was given, but the chat "
            "template changes it; protect a compiled regular expression or a span instead"
        )
    return place
