"""Copying a session's directory: what a fork may begin with.

Its files are an agent's work, and may be anything: links to elsewhere, pipes, a tree that never
ends. So nothing is followed, what is no file is left out, and there is a bound on all of it. Every
step goes by the open directory before it, so that nothing that is exchanged meanwhile leads out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 20
DEEPEST = 64
"""Directories within directories; each takes two open files while it is copied."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TooMuch(Exception):
    """There is more than may be copied; its text says of what."""


class Stopped(Exception):
    """Nobody wants the copy any more."""


def copy_tree(
    source: Path, target: Path, *, max_bytes: int, max_files: int, stopped: Callable[[], bool]
) -> None:
    """Copy what a directory holds into another, which is empty. It blocks: run it in a thread.

    Files become files of their own, with their times and permissions; links stay links.

    Args:
        source: The directory.
        target: Where it goes; it stays half filled where this raises.
        max_bytes: Most that all files may hold.
        max_files: Most files, links and directories.
        stopped: Whether to give up.

    Raises:
        TooMuch: There is more.
        Stopped: It was to give up.
        OSError: Something cannot be read, or written.
    """
    copy = _Copy(max_bytes, max_files, stopped)
    with _Open(source, _DIRECTORY) as from_, _Open(target, _DIRECTORY) as to:
        copy.directory(from_, to, DEEPEST)


class _Open:
    """A file descriptor while the context is open."""

    def __init__(
        self,
        name: str | Path,
        flags: int,
        mode: int = 0o600,
        *,
        within: int | None = None,
    ) -> None:
        self._fd = os.open(name, flags, mode, dir_fd=within)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class _Copy:
    """What of the bounds is left."""

    def __init__(self, max_bytes: int, max_files: int, stopped: Callable[[], bool]) -> None:
        self._max_bytes = self._bytes_left = max_bytes
        self._max_files = self._files_left = max_files
        self._stopped = stopped

    def directory(self, source: int, target: int, depth: int) -> None:
        """Copy what a directory holds."""
        if not depth:
            raise TooMuch(f"more than {DEEPEST} directories within each other")
        with os.scandir(source) as entries:
            for entry in entries:
                self._take_file()
                name = entry.name
                if entry.is_symlink():
                    os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                elif entry.is_dir(follow_symlinks=False):
                    os.mkdir(name, 0o700, dir_fd=target)
                    with (
                        _Open(name, _DIRECTORY, within=source) as from_,
                        _Open(name, _DIRECTORY, within=target) as to,
                    ):
                        self.directory(from_, to, depth - 1)
                        _dress(from_, to)
                elif entry.is_file(follow_symlinks=False):
                    with _Open(name, _FILE, within=source) as from_:
                        if stat.S_ISREG(os.fstat(from_).st_mode):
                            with _Open(name, _NEW, within=target) as to:
                                self._file(from_, to)
                                _dress(from_, to)

    def _file(self, source: int, target: int) -> None:
        while chunk := os.read(source, CHUNK):
            self._take_bytes(len(chunk))
            written = 0
            while written < len(chunk):
                written += os.write(target, chunk[written:])

    def _take_file(self) -> None:
        self._files_left -= 1
        if self._files_left < 0:
            raise TooMuch(f"more than {self._max_files} files")
        if self._stopped():
            raise Stopped

    def _take_bytes(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise TooMuch(f"more than {self._max_bytes >> 20} MiB")
        if self._stopped():
            raise Stopped


def _dress(source: int, target: int) -> None:
    """Give a copy the original's permissions, but no rights of others' making, and its times."""
    found = os.fstat(source)
    os.fchmod(target, stat.S_IMODE(found.st_mode) & 0o777)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
