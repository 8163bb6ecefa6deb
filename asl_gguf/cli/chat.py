"""`asl-gguf chat`: questions and answers, in a terminal or from a script of lines."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..drop_in.progress import ProgressBar
from ..errors import AslError, ModelError, OptionError, PromptError
from ..models.calibration import config_dir
from .answers import ENDLESS, add_answer_options, answer_kwargs, longest_answer, preparation
from .budgets import BUDGET_HELP, budget_of, parse_budget
from .documents import read_document
from .options import (
    add_context_options,
    add_full_kv_option,
    add_keeping_options,
    add_llama_options,
    add_model_options,
    add_pruning_options,
    add_system_option,
    keeping_kwargs,
    llama_kwargs,
    model_of,
    system_message,
)
from .streams import as_typed, standard_input

if TYPE_CHECKING:
    from .chat_session import ChatSession

_N_CTX = 16384
"""longest conversation unless --n-ctx says otherwise: the KV cells of longer ones are allocated whether used or not"""
_ROOM_ANSWERS = 4
"""answers of --max-tokens that find room beside the budget, before a turn is prefilled anew with all that came before"""
_PROMPT, _MORE = "> ", ". "
_BLOCK = '"""'
_LAST_WORDS = ("exit", "quit", "bye")
"""what somebody at a terminal types to end, and asks no model"""
_HISTORY_FILE = "chat_history"
_HISTORY_LINES = 1000

_USAGE = f"""\
A line is a question. One that ends in a backslash goes on in the next line; lines between two lines of {_BLOCK}
are one question, whatever is in them.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk with a model, also about documents",
        description="Talks with a model on a pruned KV cache. Lines come from a terminal or a script; /help lists the "
        "commands. Exit code 1: a line of a script failed.",
    )
    add_model_options(parser)
    add_llama_options(parser)
    add_pruning_options(parser, budget=None)
    add_keeping_options(parser)
    add_full_kv_option(parser, "every question selects from them again, and runs its own tokens alone")
    parser.add_argument(
        "-f", "--file", action="append", dest="files", metavar="FILE", default=[],
        help="a document (text, HTML, PDF or DOCX) to put in front of the first question; may be repeated",
    )  # fmt: skip
    add_system_option(parser)
    parser.add_argument("-cnv", "--conversation", action="store_true", help=argparse.SUPPRESS)  # as it is in any case
    n_usual = f"the model's training context, at most {_N_CTX:,}; more if --file needs it"
    add_context_options(parser, "conversation + answer", n_usual, cells=f"budget + {_ROOM_ANSWERS} answers")
    add_answer_options(parser, max_tokens=512)
    parser.set_defaults(run=chat)


def chat(args: argparse.Namespace) -> int:
    standard_input()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    session = _make_session(args)
    try:
        with _history() if terminal else contextlib.nullcontext():
            return Chat(session, terminal).run()
    finally:
        session.close()


def _make_session(args: argparse.Namespace) -> ChatSession:
    from .chat_session import ChatSession

    documents = [read_document(name) for name in args.files]
    system = system_message(args)
    budget, answer_options, prepare = budget_of(args), answer_kwargs(args), preparation(args)
    llama_options = llama_kwargs(args) | keeping_kwargs(args)
    model = model_of(args)
    n_answer = longest_answer(args, model)
    n_room = n_answer if args.max_tokens == ENDLESS else _ROOM_ANSWERS * n_answer
    llama_options |= {
        "n_ctx": _default_context(model, "\n\n".join(documents), n_room) if args.n_ctx is None else args.n_ctx,
        "asl_policy": args.policy,
        "asl_dequant": args.dequant,
        "asl_decode_ctx": args.decode_ctx,
        "asl_room": n_room,
        "asl_full_kv": args.full_kv,
    }
    session = ChatSession(model, budget, llama_options, answer_options, system, prepare)
    for document in documents:
        session.add_document(document)
    return session


def _default_context(model: str, document: str, n_room: int) -> int:
    from ..models.gguf_header import n_ctx_train
    from ..models.named import resolve
    from .run import needed_context

    n_usual = min(n_ctx_train(str(resolve(model))), _N_CTX)
    return max(n_usual, needed_context(model, document, n_room)) if document else n_usual


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing with the lines of earlier chats, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = None
    # a chat without its history is better than none
    with contextlib.suppress(OSError, ModelError):
        path = config_dir() / _HISTORY_FILE
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        if path is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(path)


class Chat:
    """Reads lines, runs commands, prints answers.

    Args:
        terminal: prompt, say what commands did, and go on after Ctrl-C; else a script is read.
    """

    def __init__(self, session: ChatSession, terminal: bool) -> None:
        self._session = session
        self._terminal = terminal

    def run(self) -> int:
        """Until the lines end. Returns the exit code."""
        failed = False
        self._say(f"asl_gguf {__version__}, n_ctx {self._session.n_ctx}. /help lists the commands, Ctrl-D ends.")
        while True:
            try:
                self._turn()
            except _Quit:
                break
            except EOFError:
                self._say("")
                break
            except KeyboardInterrupt:
                if not self._terminal:
                    raise
                print()
            except AslError as err:
                failed = True
                print(f"asl-gguf: {as_typed(err)}", file=sys.stderr)
        return int(failed and not self._terminal)

    def _turn(self) -> None:
        text, is_command = read_turn(self._read_line)
        if is_command:
            self._command(text)
        elif self._terminal and text.strip().lower() in _LAST_WORDS:
            raise _Quit
        elif text.strip():
            self._ask(text)

    def _read_line(self, prompt: str) -> str:
        """Raises EOFError after the last line, PromptError for one that is no UTF-8."""
        try:
            if self._terminal:
                return input(prompt)
            line = sys.stdin.buffer.readline().decode("utf-8")
        except UnicodeDecodeError as err:
            raise PromptError(f"expected lines of UTF-8 text, got {err}") from err
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _say(self, text: str) -> None:
        """What only somebody at a terminal wants to know."""
        if self._terminal:
            print(text)

    def _ask(self, question: str) -> None:
        bar = ProgressBar("prefill")
        shown = False

        def show(part: str) -> None:
            nonlocal shown
            shown = True
            print(part, end="", flush=True)

        try:
            complete = self._session.ask(question, show, bar)
        except BaseException as err:
            # the bar's line is erased, the answer's ends
            if shown:
                print()
            else:
                bar.clear()
            if isinstance(err, KeyboardInterrupt):
                self._say("stopped; the question is withdrawn")
            raise
        print()
        self._say(f"[{self._session.report}]")
        if not complete:
            self._say("stopped")
            if not self._terminal:
                raise KeyboardInterrupt

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        command = _COMMANDS.get(_OTHER_NAMES.get(name, name))
        if command is None:
            raise OptionError(
                f"expected one of {', '.join(_COMMANDS)}, got {name}; a space in front makes the line a question"
            )
        if bool(argument) != bool(command.argument) and not (command.optional and not argument):
            raise OptionError(f"expected {name} {command.argument or 'alone'}, got {line.rstrip()}")
        command.run(self, argument)

    def file(self, argument: str) -> None:
        n_tokens = self._session.add_document(read_document(_path(argument)))
        self._say(f"{n_tokens} tokens, in front of the next question")

    def budget(self, argument: str) -> None:
        if not argument:
            print("none" if self._session.budget is None else self._session.budget)
            return
        self._session.set_budget(parse_budget(argument, "/budget"))
        self._say(f"budget {argument}; the next question is prefilled with all that came before")

    def report(self, _argument: str) -> None:
        report = self._session.report
        print("\n".join(report.lines(self._session.speed)) if report else "no prompt was prefilled yet")

    def kept(self, _argument: str) -> None:
        print(self._session.kept_text() or "no prefill dropped tokens of its prompt; /report says more")

    def save(self, argument: str) -> None:
        self._session.save(_path(argument))
        self._say(f"saved {len(self._session.messages)} messages")

    def load(self, argument: str) -> None:
        self._session.load(_path(argument))
        self._say(f"loaded {len(self._session.messages)} messages")

    def clear(self, _argument: str) -> None:
        self._session.clear()

    def help(self, _argument: str) -> None:
        print(_USAGE)
        columns = max(40, shutil.get_terminal_size().columns)
        for name, command in _COMMANDS.items():
            text = textwrap.fill(command.help, columns - 15, break_on_hyphens=False).replace("\n", "\n" + " " * 14)
            print(f"{name + ' ' + command.argument:14}{text}")

    def quit(self, _argument: str) -> None:
        raise _Quit


class _Quit(Exception):
    """/quit"""


@dataclass(frozen=True)
class _Command:
    run: Callable[[Chat, str], None]
    help: str
    argument: str = ""
    """its name, for commands that take one"""
    optional: bool = False
    """whether it may be left out"""


_COMMANDS = {
    "/file": _Command(Chat.file, "put the text of a file in front of the next question", "PATH"),
    "/budget": _Command(Chat.budget, f"{BUDGET_HELP}; none: full cache; alone: what it is now", "X", optional=True),
    "/report": _Command(Chat.report, "what the last prefill kept, and what it took"),
    "/kept": _Command(Chat.kept, "text of the tokens that the last pruned prefill kept"),
    "/save": _Command(Chat.save, "write the conversation as JSON", "PATH"),
    "/load": _Command(Chat.load, "go on from a saved conversation", "PATH"),
    "/clear": _Command(Chat.clear, "forget the conversation and the files for the next question"),
    "/help": _Command(Chat.help, "this list"),
    "/quit": _Command(Chat.quit, "end, as Ctrl-D does"),
}

_OTHER_NAMES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "/read": "/file"}
"""what other programs call them"""


def read_turn(read_line: Callable[[str], str]) -> tuple[str, bool]:
    """The next question or command, and whether it is a command.

    Args:
        read_line: the next line, given the text to prompt with.

    Raises:
        EOFError: there are no more lines.
        PromptError: a block does not end.
    """
    line = read_line(_PROMPT)
    if line.strip() == _BLOCK:
        return _read_block(read_line), False
    if line.startswith("/"):
        return line, True
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read_line(_MORE))
        except EOFError:
            break
    return "\n".join(lines), False


def _read_block(read_line: Callable[[str], str]) -> str:
    lines: list[str] = []
    while True:
        try:
            line = read_line(_MORE)
        except EOFError:
            raise PromptError(f"expected a line of {_BLOCK} after the block, got the end of the lines") from None
        if line.strip() == _BLOCK:
            return "\n".join(lines)
        lines.append(line)


def _path(argument: str) -> Path:
    """Raises OptionError for the home folder of somebody unknown."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as err:
        raise OptionError(f"expected a path, got {argument}: {err}") from err
