"""`pruned`: classes of other packages that make a `llama_cpp.Llama` of their own make an `asl_gguf.Llama`.

Nothing is replaced by an import. While a call of `pruned` runs, or the body of `with replaced(...)`, `llama_cpp.Llama`
is `DropInLlama`; after it, the class is llama_cpp's again. The options are those of the thread and the asyncio task
that asked for them: what others make meanwhile behaves as llama_cpp's own.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ..errors import OptionError
from ..native.bindings import llama_cpp
from .llama import Llama
from .options import AslOptions

_P = ParamSpec("_P")
_T = TypeVar("_T")

_STOCK: type = llama_cpp.Llama


@dataclass
class Scope:
    """A call of `pruned`, or the body of `with replaced(...)`."""

    options: dict[str, Any]
    n_made: int = 0
    """objects that took the options"""


_scope: ContextVar[Scope | None] = ContextVar("options of llama_cpp.Llama objects made here", default=None)

_lock = threading.Lock()
_in_use: Counter[tuple[str, str]] = Counter()
"""(module, name) that stand for DropInLlama, and for how many scopes"""


class DropInLlama(Llama):
    """`Llama` with options from the scope it is made in; the caller's own `asl_*` options come first."""

    _asl_takes_unknown = True  # packages pass arguments of other versions, such as LangChain's n_parts

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        scope = _scope.get()
        super().__init__(model_path, **((scope.options if scope else {}) | kwargs))
        if scope is not None:
            scope.n_made += 1


def pruned(make: Callable[_P, _T], **asl_options: Any) -> Callable[_P, _T]:
    """`make`, but what it makes as `llama_cpp.Llama` is an `asl_gguf.Llama` with these options.

    >>> llm = pruned(ChatLlamaCpp, asl_budget=0.1)(model_path="model.gguf", n_ctx=32768)

    Args:
        make: a class such as LangChain's or llama-index's, or a function such as a server's main.
        asl_options: keyword arguments of `Llama` that begin with asl_.

    Raises:
        OptionError: an option is unknown or out of its domain. When the result is called: `make` made no
            `llama_cpp.Llama`, so that nothing would be pruned.
    """
    _check(asl_options)

    @functools.wraps(make, updated=())
    def make_pruned(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with replaced(make, **asl_options) as scope:
            made = make(*args, **kwargs)
        if not scope.n_made:
            raise OptionError(
                f"pruned: expected a callable that makes a llama_cpp.Llama, but {make!r} made none; pass the class that "
                "does, or make an asl_gguf.Llama yourself"
            )
        return made

    return make_pruned


@contextlib.contextmanager
def replaced(*users: object, **asl_options: Any) -> Iterator[Scope]:
    """Within, `llama_cpp.Llama` is an `asl_gguf.Llama` with these options, also for asyncio tasks that start there.

    Args:
        users: classes and functions whose modules may have imported the class from llama_cpp already: there it is
            replaced too.
        asl_options: as for `pruned`.

    Raises:
        OptionError: an option is unknown or out of its domain.
    """
    _check(asl_options)
    places = {(llama_cpp.__name__, "Llama")}.union(*map(_places_of, users))
    token = _scope.set(scope := Scope(asl_options))
    _use(places)
    try:
        yield scope
    finally:
        _release(places)
        _scope.reset(token)


def _check(asl_options: dict[str, Any]) -> None:
    """Raises OptionError, before a model is loaded, where `Llama` would."""
    for name in asl_options:
        if not name.startswith("asl_"):
            raise OptionError(f"{name}: expected options that begin with asl_, got another one; pass it where you did")
    rest = {name: value for name, value in asl_options.items() if name != "asl_budget"}
    AslOptions.parse(asl_options.get("asl_budget"), rest)


def _places_of(user: object) -> set[tuple[str, str]]:
    """(module, name) where a module that defines `user` or one of its bases has bound llama_cpp's class to a name."""
    modules = {str(getattr(part, "__module__", None)) for part in (user, *getattr(user, "__mro__", ()))}
    return {
        (module, name)
        for module in modules & set(sys.modules) - {_STOCK.__module__}
        for name, value in list(vars(sys.modules[module]).items())
        if value is _STOCK or (module, name) in _in_use
    }


def _use(places: Iterable[tuple[str, str]]) -> None:
    with _lock:
        for place in places:
            _in_use[place] += 1
            setattr(sys.modules[place[0]], place[1], DropInLlama)


def _release(places: Iterable[tuple[str, str]]) -> None:
    """Other threads may still be in a scope of theirs: the last one puts llama_cpp's class back."""
    with _lock:
        for place in places:
            _in_use[place] -= 1
            if not _in_use[place]:
                del _in_use[place]
                setattr(sys.modules[place[0]], place[1], _STOCK)
