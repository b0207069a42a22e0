"""What a session has made in its private directory: found by descriptors, never by a path.

Whoever works there may make links, pipes and devices, and swap one thing for another at any moment.
So every step is taken from an open directory, to a name in it, and follows no link: wherever that
leads, it is within the directory that the first step opened. Nothing but a regular file is opened
for reading.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

DEEPEST = 64
"""Directories within one another that are looked at: each costs as many steps as it is deep."""

MOST_SEEN = 10_000
"""Names that are looked at for one list, so that none takes long, however many there are."""

MOST_TEXT = 4 * 2**20
"""Characters of all paths in one list: names can be long, and far down."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE: int | None = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if sys.platform == "linux" else None
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileKind(StrEnum):
    """What something in a directory is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"
    """A pipe, a socket, a device, or something whose name is no text: it cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something in a directory.

    Attributes:
        path: Where, from the session's own directory.
        kind: What it is.
        size: Bytes of a file; None for anything else.
        modified_at: When it last changed, UTC; None if that is no time of this world.
    """

    path: str
    kind: FileKind
    size: int | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What there is.

    Attributes:
        found: Files and directories; those higher up first, by name within each directory.
        truncated: Whether there is more than that.
    """

    found: tuple[Found, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A regular file that is open for reading.

    Attributes:
        fd: Its descriptor, to be closed by whoever asked for it.
        size: Bytes that it had then.
        modified_ns: When it last changed, nanoseconds since 1970.
    """

    fd: int
    size: int
    modified_ns: int


class NoSuchFile(Exception):
    """There is nothing there that can be had; the message says why."""


def parts_of(path: str) -> tuple[str, ...]:
    """Return the names that a path goes through, each of them one of a directory's.

    Raises:
        NoSuchFile: It cannot be a path from a directory to something in it.
    """
    parts = tuple(path.split("/"))
    if not all(_is_name(part) for part in parts):
        raise NoSuchFile(f"{_shown(path)} is no path of a file: names with single slashes between.")
    return parts


def listed(root: str, below: Sequence[str], *, limit: int) -> Listing:
    """Return what is in a directory and the ones in it.

    It looks at the file system: call it in a thread.

    Args:
        root: The session's own directory, an absolute path.
        below: The names that lead from there to the directory to list; none: that one itself.
        limit: Most that are returned.

    Raises:
        NoSuchFile: There is no such directory.
    """
    found: list[Found] = []
    seen = text = 0
    truncated = False
    waiting: deque[tuple[str, ...]] = deque([tuple(below)])
    while waiting and not truncated:
        folder = waiting.popleft()
        try:
            entries, truncated = _entries(root, folder, most=MOST_SEEN - seen)
        except OSError:
            if folder == tuple(below) and (below or os.path.lexists(root)):
                raise NoSuchFile(f"There is no directory {_shown('/'.join(below))}.") from None
            continue  # it went while we looked, or nobody may look at it
        seen += len(entries)
        prefix = "".join(f"{part}/" for part in folder)
        for entry in entries:
            text += len(prefix) + len(entry.path)
            if len(found) >= limit or text > MOST_TEXT:
                truncated = True
                break
            found.append(replace(entry, path=prefix + entry.path))
            if entry.kind is FileKind.DIRECTORY:
                if len(folder) + 1 < DEEPEST:
                    waiting.append((*folder, entry.path))
                else:
                    truncated = True
    return Listing(found=tuple(found), truncated=truncated)


def open_file(root: str, parts: Sequence[str]) -> Opened:
    """Open a regular file for reading; whoever asks closes its descriptor.

    It looks at the file system: call it in a thread.

    Args:
        root: The session's own directory, an absolute path.
        parts: The names that lead from there to the file.

    Raises:
        NoSuchFile: There is none, or it is something else.
    """
    shown = _shown("/".join(parts))
    try:
        with _directory(root, parts[:-1]) as folder:
            fd = _open_regular(folder, parts[-1], shown)
            try:
                status = os.fstat(fd)
            except OSError:
                os.close(fd)
                raise
            return Opened(fd=fd, size=status.st_size, modified_ns=status.st_mtime_ns)
    except (OSError, ValueError):
        raise NoSuchFile(f"There is no file {shown} that can be read.") from None


# -- inside ------------------------------------------------------------------------------------


@contextmanager
def _directory(root: str, parts: Sequence[str]) -> Generator[int]:
    """Open a directory, one step after the other.

    Raises:
        OSError: There is none, or a link is on the way.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _open_regular(folder: int, name: str, shown: str) -> int:
    """Open what is a regular file, and nothing else, not even for a moment.

    Raises:
        NoSuchFile: It is something else.
        OSError: There is none.
    """
    if _PLACE is not None:
        # What a descriptor of this kind stands for is not opened, and can no more be swapped.
        place = os.open(name, _PLACE, dir_fd=folder)
        try:
            _require_regular(os.fstat(place).st_mode, shown)
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode, shown)
    fd = os.open(name, _FILE, dir_fd=folder)
    try:
        _require_regular(os.fstat(fd).st_mode, shown)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_regular(mode: int, shown: str) -> None:
    match _kind(mode):
        case FileKind.FILE:
            return
        case FileKind.DIRECTORY:
            raise NoSuchFile(f"{shown} is a directory. List it with `?path=`.")
        case FileKind.LINK:
            raise NoSuchFile(f"{shown} is a symbolic link, and none is followed.")
        case _:
            raise NoSuchFile(f"{shown} is no regular file.")


def _entries(root: str, folder: Sequence[str], *, most: int) -> tuple[list[Found], bool]:
    """Return what is in one directory, under its name there, and whether there is more.

    Raises:
        OSError: There is no such directory.
    """
    found: list[Found] = []
    more = False
    with _directory(root, folder) as fd, os.scandir(fd) as entries:
        for entry in entries:
            if len(found) >= most:
                more = True
                break
            with suppress(OSError):  # it went while we looked
                found.append(_found(entry))
    return sorted(found, key=lambda one: one.path), more


def _found(entry: os.DirEntry[str]) -> Found:
    """Return one entry of a directory.

    Raises:
        OSError: It is gone.
    """
    status = entry.stat(follow_symlinks=False)
    is_name = _is_name(entry.name)
    kind = _kind(status.st_mode) if is_name else FileKind.OTHER
    return Found(
        path=entry.name if is_name else _text(entry.name),
        kind=kind,
        size=status.st_size if kind is FileKind.FILE else None,
        modified_at=_time(status.st_mtime_ns),
    )


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return FileKind.FILE
    if stat.S_ISDIR(mode):
        return FileKind.DIRECTORY
    return FileKind.LINK if stat.S_ISLNK(mode) else FileKind.OTHER


def _time(modified_ns: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(modified_ns / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _is_name(part: str) -> bool:
    """Return whether it can be the name of something in a directory, and be said in an address."""
    if part in ("", ".", ".."):
        return False
    return not any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in part)


def _text(name: str) -> str:
    """Return what can be shown of a name that is no text."""
    whole = os.fsencode(name).decode(errors="replace")
    return "".join("\ufffd" if char < " " or char == "\x7f" else char for char in whole)


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else f"{path[:197]}...")
