"""A small disk of a run's own, which it can fill up; where the system allows one. Linux only.

It is mounted in a mount namespace of this process and its children, so nobody else sees it, and it
is gone with the last of them, however they end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS = 0x00020000


class SmallDisk:
    """A file system of a limited size.

    Args:
        directory: Where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    @contextmanager
    def full(self) -> Generator[None]:
        """Leave not one byte of it free, while the context is open."""
        try:
            with self._filler.open("wb", buffering=0) as filler:
                for size in (1 << 20, 4096, 1):
                    with contextlib.suppress(_Full):
                        while True:
                            _write(filler.fileno(), b"\0" * size)
            yield
        finally:
            self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Give it up, whoever still has a file open there: its directory can be removed."""
        subprocess.run(("umount", "--lazy", str(self.directory)), check=True, capture_output=True)


class _Full(Exception):
    """There is no room left."""


def mount_small_disk(directory: Path, megabytes: int) -> SmallDisk | None:
    """Mount a disk for this process and its children; None where that is not allowed.

    Call it before there are threads: a namespace belongs to one thread and what that starts.

    Args:
        directory: An empty one.
        megabytes: Its size, 2**20 bytes.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        return None
    for command in (
        ("mount", "--make-rprivate", "/"),
        ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(directory)),
    ):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
    return SmallDisk(directory)


def _write(descriptor: int, content: bytes) -> None:
    try:
        os.write(descriptor, content)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _Full from error
