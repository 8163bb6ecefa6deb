"""Files that are there whole or not at all, and folders of the user's."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to and read from, which takes the place of `path` when the block ends without an error.

    It is like any new file, or like the one it replaces: its mode is what the umask leaves, or that file's. Where `path`
    is a symbolic link, what it points to is replaced and not the link.

    Raises:
        OSError: the folder cannot be written, or `path` is no regular file; it is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"expected a file or a free name, got {path}, which is a folder, a device or a pipe")
    part = target.with_name(f".{os.fsdecode(os.fsencode(target.name)[:64])}-{secrets.token_hex(8)}.part")
    with contextlib.ExitStack() as undo:
        with part.open("x+b") as file:  # not of tempfile, whose files are 0600 whatever the umask
            undo.callback(_unlink, part)
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(part, target)
        undo.pop_all()


def xdg_folder(variable: str, in_home: str) -> Path:
    """The folder that an XDG variable names, or this one in the user's home.

    Raises:
        RuntimeError: the user has no home folder.
    """
    named = os.environ.get(variable, "")
    # the XDG specification says to ignore a relative path
    return Path(named) if os.path.isabs(named) else Path.home() / in_home


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
