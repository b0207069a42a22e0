"""A file is replaced as a whole: whoever reads it sees the old one or the new one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Keep out everybody else who locks the directory, while the context is open.

    Raises:
        OSError: The directory cannot be opened.
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def replace(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file, so that a crash leaves the old one or the new one.

    Args:
        path: Which; of a link, what it leads to.
        text: What it will hold.
        private: Whether only this program's user may use it, whoever could use the old one;
            otherwise that stays. A new file is private.

    Raises:
        OSError: It cannot be written.
    """
    path = path.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if not private:
                _keep_access(path, file.fileno())
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _keep_access(path: Path, file: int) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    with suppress(PermissionError):  # only root may give files away
        os.fchown(file, old.st_uid, old.st_gid)
    os.fchmod(file, old.st_mode & 0o777)
