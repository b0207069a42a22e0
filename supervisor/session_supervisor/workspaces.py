"""Private directories: where a session works when its caller names no place.

A directory is allotted before any process runs in it, and outlives every one of them: an agent
finds a conversation again by the directory that it was held in.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio.to_thread

from session_supervisor.errors import NoWorkspace

logger = logging.getLogger(__name__)

SPARE = "process-"
"""How the name of a directory begins that was made for a process, and not for one session."""


class Workspaces(Protocol):
    """Allots directories, and takes them back."""

    async def allot(self, session_id: str) -> Path:
        """Make a directory that is this session's alone; return its absolute path, without links.

        Raises:
            NoWorkspace: It cannot be made.
        """
        ...

    async def restore(self, directory: Path) -> None:
        """Make a directory again that was allotted and is gone; else nothing happens.

        Raises:
            NoWorkspace: It cannot be made.
        """
        ...

    async def release(self, directory: Path) -> None:
        """Remove a directory with all that is in it; nothing happens if it is gone.

        Raises:
            OSError: Something of it is still there.
        """
        ...

    async def aclose(self) -> None:
        """Remove what was only made for as long as this lives."""
        ...


@runtime_checkable
class ReusableWorkspaces(Workspaces, Protocol):
    """Allots directories that can be one session's after another's."""

    def sign(self, directory: Path) -> Hashable:
        """Return what tells a directory from any other that was ever at its place.

        Raises:
            OSError: It is not there, or not empty.
        """
        ...

    async def empty(self, directory: Path, into: Path) -> None:
        """Move all that is in a directory to another one, which is empty.

        Raises:
            OSError: All of it is still there.
        """
        ...

    def move(self, directory: Path, into: Path) -> None:
        """Do the same at once, and remove the directory, unless something has come meanwhile.

        Raises:
            OSError: All of it is still there.
        """
        ...

    def discard(self, directory: Path) -> None:
        """Remove a directory if it is empty; else nothing happens."""
        ...

    async def sweep(self, known: Collection[Path]) -> None:
        """Remove directories for processes without a session, but for those that are known.

        They have names that begin with `SPARE`, and a predecessor that was killed left them. What
        is in use elsewhere stays, and what is not empty: another store may know whose it is.
        """
        ...


class PrivateDirectories:
    """Directories below one root, readable by this user only.

    Args:
        root: Where they are, made when it is needed; None makes a temporary one, which goes with
            `aclose`.
        keep: Whether what was not released stays, in a temporary one, too: its sessions go on.
    """

    def __init__(self, root: Path | None = None, *, keep: bool = False) -> None:
        self._given = root
        self._keep = keep
        self._root: Path | None = None
        self._lock: int | None = None
        """Descriptor of a given root, which shows others that somebody works there."""

    async def allot(self, session_id: str) -> Path:
        """See `Workspaces.allot`."""
        try:
            # A few system calls: a thread would take longer to hand them to.
            directory = self._directories() / session_id
            directory.mkdir(mode=0o700, parents=True)
        except OSError as error:
            logger.exception(
                "no directory can be made for session %s",
                session_id,
                extra={"session_id": session_id},
            )
            raise NoWorkspace(error.strerror or type(error).__name__) from error
        return directory

    async def restore(self, directory: Path) -> None:
        """See `Workspaces.restore`."""
        try:
            if _make_again(directory):
                logger.warning("the directory %s was gone and was made again, empty", directory)
        except OSError as error:
            raise NoWorkspace(error.strerror or type(error).__name__) from error

    def _directories(self) -> Path:
        """Return the root, which has no links in it: an agent would take one for a trap."""
        if self._root is None:
            if self._given is None:
                self._root = Path(tempfile.mkdtemp(prefix="session-supervisor-")).resolve()
            else:
                self._given.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._root = self._given.resolve()
                self._lock = _locked(self._root)
        return self._root

    async def release(self, directory: Path) -> None:
        """See `Workspaces.release`."""
        try:
            await anyio.to_thread.run_sync(_remove, directory)
        except OSError as error:
            logger.error("the directory %s could not be removed: %s", directory, error)
            raise

    def sign(self, directory: Path) -> Hashable:
        """See `ReusableWorkspaces.sign`."""
        found = os.stat(directory, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or os.listdir(directory):
            raise OSError(errno.ENOTEMPTY, "it is not as it was", str(directory))
        return found.st_dev, found.st_ino, found.st_mode

    async def empty(self, directory: Path, into: Path) -> None:
        """See `ReusableWorkspaces.empty`."""
        if os.listdir(directory):
            await anyio.to_thread.run_sync(_move, directory, into)

    def move(self, directory: Path, into: Path) -> None:
        """See `ReusableWorkspaces.move`."""
        _move(directory, into)
        self.discard(directory)

    def discard(self, directory: Path) -> None:
        """See `ReusableWorkspaces.discard`."""
        with suppress(OSError):
            directory.rmdir()

    async def sweep(self, known: Collection[Path]) -> None:
        """See `ReusableWorkspaces.sweep`."""
        if self._given is None or not self._given.is_dir():
            return
        root = self._directories()
        if self._lock is not None:
            names = {path.name for path in known}
            await anyio.to_thread.run_sync(_sweep, root, self._lock, names)

    async def aclose(self) -> None:
        """See `Workspaces.aclose`."""
        root, self._root = self._root, None
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
        if root is None or self._given is not None:
            return
        if self._keep:
            with suppress(OSError):  # it is not empty
                root.rmdir()
        else:
            with suppress(OSError):  # temporary: the system removes it, some day
                await anyio.to_thread.run_sync(_remove, root)


def _locked(root: Path) -> int | None:
    """Return a descriptor of a directory that is locked, shared; None: nothing can be locked there.

    Nobody waits for long: it is locked otherwise only while somebody sweeps.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(root: Path, lock: int, known: Collection[str]) -> None:
    """Remove empty directories for processes, if nobody else works there."""
    left = [one for one in root.glob(f"{SPARE}*") if one.name not in known]
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        left = []
    for directory in left:
        try:
            directory.rmdir()
        except OSError:
            logger.info("%s stays: no session here knows it, but it is not empty", directory)
    # Also where it was refused: then the other one is lost.
    fcntl.flock(lock, fcntl.LOCK_SH)


def _move(directory: Path, into: Path) -> None:
    """Move all that is in a directory, or nothing.

    Raises:
        OSError: Something cannot be moved.
    """
    moved: list[str] = []
    try:
        for name in os.listdir(directory):
            os.rename(directory / name, into / name)
            moved.append(name)
    except OSError:
        for name in moved:
            os.rename(into / name, directory / name)
        raise


def _make_again(directory: Path) -> bool:
    if directory.is_dir():
        return False
    directory.mkdir(mode=0o700, parents=True)
    return True


def _remove(directory: Path) -> None:
    """Remove a directory, also where what ran in it has taken our right to.

    Raises:
        OSError: Something of it is still there.
    """
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        if not os.path.lexists(directory):
            return
    except OSError:
        pass
    else:
        return
    for path, _, _ in os.walk(directory):  # from above, so that it finds what is below
        with suppress(OSError):
            os.chmod(path, stat.S_IRWXU)
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
