"""The directory that a process starts in, held while it does.

A directory was looked at when its session began. Until a process of that session starts, which may
be hours later and again after every crash, whoever may write above it can put a link in its place.
So each start opens it, asks the kernel where that is, and enters what it has opened.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

MOVED = "it is gone, or its path leads elsewhere now"


def is_resolved(path: str) -> bool:
    """Whether a path leads where it says, without a symbolic link on the way."""
    return os.path.realpath(path) == os.path.normpath(path)


@contextmanager
def held(path: str) -> Generator[str]:
    """Hold a directory open; yields a path by which a child of ours enters it and no other.

    Where there is no `/proc`, that path is the same as the given one, and looked at once more.

    Args:
        path: Absolute, and without links.

    Raises:
        NotADirectoryError: It is none, or its path leads elsewhere now.
        OSError: It cannot be opened for another reason.
    """
    if sys.platform != "linux":
        if not os.path.isdir(path) or not is_resolved(path):
            raise NotADirectoryError(errno.ENOTDIR, MOVED)
        yield path
        return
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        # All the same to who made the link: it must not tell what there is at its other end.
        raise NotADirectoryError(errno.ENOTDIR, MOVED) from error
    try:
        inside = f"/proc/self/fd/{fd}"
        if os.readlink(inside) != os.path.normpath(path):
            raise NotADirectoryError(errno.ENOTDIR, MOVED)
        yield inside
    finally:
        os.close(fd)
