"""Directories for what the CLI writes while it lives, and what becomes of those that stay."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

_log = logging.getLogger(__name__)

_FOLDER = "claude-"
"""How the name of what holds them begins."""

_TRIES = 5
"""How often a directory is tried; what then is still there is the operator's."""

_AT_ONCE = 20
"""Most left directories that are tried along with the next one, so that none waits long for it."""


class Scratches:
    """Makes scratch directories, and removes them.

    All lie in one directory, which can be hidden from every session: in them is what the commands
    of others print. One may stay, for want of a file descriptor or because it holds what we may not
    remove. It is tried again along with later ones, and given up with a word in the log.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._left: dict[str, int] = {}
        self._folder: str | None = None

    def make(self, below: str | None) -> str:
        """Make a directory that this user alone can use.

        Its parent holds the directories of all sessions, and nothing else.

        Args:
            below: Where; None: in the directory for temporary files.

        Raises:
            OSError: It cannot be made.
        """
        if self._folder is None or not os.path.isdir(self._folder):
            self._folder = tempfile.mkdtemp(prefix=_FOLDER, dir=below)
        try:
            # A short name: the CLI makes sockets in it, whose paths may not be long.
            return tempfile.mkdtemp(prefix="", dir=self._folder)
        except OSError:
            self._remove_folder()
            raise

    async def remove(self, *scratches: str) -> None:
        """Remove directories, and some that were left before."""
        # Only ever changed in the event loop's thread, since several are removed at once.
        before = tuple(self._left)[:_AT_ONCE]
        wanted = (*scratches, *before)
        if not wanted:
            return
        left = await asyncio.to_thread(_remove, wanted)
        for scratch in wanted:
            tries = self._left.pop(scratch, 0) + 1
            if scratch not in left:
                continue
            if tries < _TRIES:
                self._left[scratch] = tries
            else:
                _log.error("The scratch directory %s cannot be removed: please do so", scratch)
        self._remove_folder()

    def remove_now(self, scratch: str) -> None:
        """Remove one that has hardly been used."""
        if _remove((scratch,)):
            self._left[scratch] = 1
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove what holds them, if it holds none."""
        if self._folder is not None:
            with suppress(OSError):
                os.rmdir(self._folder)


Listing: TypeAlias = frozenset[tuple[str, int, int, int, int]]
"""What is in a directory: of each file its path, and what changes with it."""


def listing(scratch: str) -> Listing:
    """Return what is in a scratch directory, and below it."""
    found: set[tuple[str, int, int, int, int]] = set()
    for folder, folders, files in os.walk(scratch):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            try:
                told = os.lstat(path)
            except FileNotFoundError:  # the CLI has removed it just now
                continue
            is_file = stat.S_ISREG(told.st_mode)
            size, changed = (told.st_size, told.st_mtime_ns) if is_file else (0, 0)
            found.add((path, told.st_mode, told.st_ino, size, changed))
    return frozenset(found)


def restore(scratch: str, before: Listing) -> None:
    """Remove what was not in a scratch directory before.

    Raises:
        OSError: It is not as it was, and cannot be made so.
    """
    known = {path for path, *_ in before}
    # From below: what is in a new directory goes before that.
    for path, mode, *_ in sorted(listing(scratch), reverse=True):
        if path not in known:
            with suppress(FileNotFoundError):
                os.rmdir(path) if stat.S_ISDIR(mode) else os.unlink(path)
    # What is gone, the CLI has removed: it tries the file system out as it starts.
    if listing(scratch) - before:
        raise OSError(errno.ENOTEMPTY, "it is not as it was", scratch)


def remove_left(scratch: str) -> None:
    """Remove one that a predecessor made, and what held it if it held no other."""
    folder = os.path.dirname(scratch)
    if os.path.basename(folder).startswith(_FOLDER):
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            os.rmdir(folder)


def _remove(scratches: tuple[str, ...]) -> frozenset[str]:
    """Remove what can be removed; return what stays."""
    for scratch in scratches:
        shutil.rmtree(scratch, ignore_errors=True)
    return frozenset(scratch for scratch in scratches if os.path.lexists(scratch))


def written(text: str | None, scratch: str, name: str) -> str | None:
    """Write a text to a file in a scratch directory; return its path, None if there is none."""
    if text is None:
        return None
    path = Path(scratch, name)
    path.write_text(text, encoding="utf-8")
    return str(path)
