"""The state directory: what outlives a server, and the lock that lets only one have it.

The lock is the kernel's (`flock`), so it is gone with the process that has it, however that ends.
A server whose state is to end with it has a directory for temporary files instead, locked as well:
by that the next one knows which of them a server that was killed has left behind.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

logger = logging.getLogger(__name__)

LOCK = "lock"
PREFIX = "session-supervisor-"

RETRY_S = 0.1
"""Seconds between two tries to get the lock: nobody is told when it becomes free."""


class StateError(Exception):
    """The state directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StateDir:
    """What lies where in a state directory.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def database(self) -> Path:
        """Sessions, turns, events and transcripts."""
        return self.path / "sessions.db"

    @property
    def workspaces(self) -> Path:
        """Private directories of sessions, where no other place is set for them."""
        return self.path / "workspaces"

    @property
    def claude(self) -> Path:
        """What Claude Code keeps, where it does not use that of the server's user."""
        return self.path / "claude"

    @property
    def processes(self) -> Path:
        """Which processes were started, for the server that comes after a killed one."""
        return self.path / "processes"

    @property
    def scratch(self) -> Path:
        """What lives no longer than a process."""
        return self.path / "tmp"

    def prepare(self) -> None:
        """Make it, for this user alone, and see that it can be written to.

        A directory that is there keeps its mode; everything in it is this user's alone.

        Raises:
            StateError: It cannot be made, or be written to.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for one in (self.workspaces, self.processes, self.scratch):
                one.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unusable(self.path, error) from error

    def make_database(self) -> Path:
        """Return the database's file, made for this user alone, as SQLite would not.

        Raises:
            StateError: It cannot be made.
        """
        try:
            os.close(os.open(self.database, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise unusable(self.path, error) from error
        return self.database

    def empty_scratch(self) -> None:
        """Remove what a server that was killed has left; none may be running."""
        remove_all([self.scratch / name for name in _entries(self.scratch)])

    def unknown_workspaces(self, known: Collection[str]) -> list[Path]:
        """Return private directories that belong to none of some sessions: a crash came between.

        Args:
            known: Ids of all sessions that there are.
        """
        return [
            self.workspaces / name
            for name in _entries(self.workspaces)
            if _is_session_id(name) and name not in known
        ]

    def set_workspaces_aside(self) -> Path | None:
        """Keep private directories that no session can have, as there is no database.

        It may have been moved away because it is damaged; with a backup in its place, what is in
        them is wanted again.

        Returns:
            Where they are now; None: there is a database, or there are no such directories.

        Raises:
            StateError: They cannot be moved.
        """
        try:
            if self.database.exists() and self.database.stat().st_size:
                return None
            if not self.unknown_workspaces(()):
                return None
            aside = self.path / f"workspaces-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            self.workspaces.rename(aside)
            self.workspaces.mkdir(mode=0o700)
        except OSError as error:
            raise unusable(self.path, error) from error
        return aside


class Lock:
    """Makes a directory one server's alone.

    Args:
        directory: Which.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    async def acquire(self, wait_s: float, given_up: asyncio.Event) -> bool:
        """Get it, waiting for another server that is about to end.

        Args:
            wait_s: Seconds to wait at most.
            given_up: Set when nobody wants it any more.

        Returns:
            Whether it was had; False: it was given up before.

        Raises:
            StateError: Another server has it, also in the end; or it cannot be locked at all.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        told = False
        while not self._try():
            if loop.time() >= until:
                raise StateError(
                    f"The state directory {self._directory} is in use by another server, "
                    f"{holder_in(self._directory)}, and still was after {wait_s:g} s. Stop that "
                    "one, or give this one a directory of its own with --state-dir."
                )
            if not told:
                told = True
                logger.info(
                    "another server, %s, has the state directory; waiting up to %g s for its end",
                    holder_in(self._directory),
                    wait_s,
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(given_up.wait(), min(RETRY_S, max(0.0, until - loop.time())))
                return False
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _try(self) -> bool:
        try:
            descriptor = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unusable(self._directory, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            _sign(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise unusable(self._directory, error) from error
        self._descriptor = descriptor
        return True


def holder_in(directory: Path) -> str:
    """Return who signed a lock last, in words."""
    with suppress(OSError, ValueError):
        number, _, host = (directory / LOCK).read_text(encoding="utf-8").strip().partition(" ")
        # Another host's, or another container's, numbers are its own.
        place = "" if host == socket.gethostname() else f" on {host}"
        return f"process {int(number)}{place}"
    return "an unknown process"


def is_locked(directory: Path) -> bool:
    """Return whether a server has a directory; nothing is made or changed there.

    Raises:
        OSError: Its lock cannot be looked at.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def temporary() -> Generator[StateDir]:
    """Give a state directory that ends with the context.

    Those of servers that were killed are removed on the occasion.

    Raises:
        StateError: None can be made.
    """
    base = Path(tempfile.gettempdir()).resolve()
    try:
        remove_left_behind(base)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise unusable(base, error) from error
    descriptor: int | None = None
    try:
        # Locked before it has the name by which others know that they may try it.
        unnamed = path / f"{LOCK}.new"
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sign(descriptor)
        unnamed.rename(path / LOCK)
        yield StateDir(path)
    finally:
        _remove(path)
        if descriptor is not None:
            os.close(descriptor)


def remove_left_behind(base: Path) -> None:
    """Remove temporary state directories whose server is gone.

    Args:
        base: Where they are.
    """
    for name in _entries(base):
        path = base / name
        with suppress(OSError):
            if (
                name.startswith(PREFIX)
                and path.lstat().st_uid == os.geteuid()
                and not path.is_symlink()
                and (path / LOCK).is_file()
                and not is_locked(path)
            ):
                _remove(path)


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files and directories, as far as that is possible."""
    for path in paths:
        _remove(path)


def unusable(path: Path, error: OSError) -> StateError:
    """Return what an error of the operating system means to an operator."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            advice = "Make room there; what was acknowledged before is safe."
        case errno.EROFS:
            advice = "Mount it so that it can be written to, or name another with --state-dir."
        case _:
            advice = (
                "Name a directory that the server's user may write to with --state-dir, or do "
                "without one: --store memory."
            )
    reason = error.strerror or type(error).__name__
    return StateError(f"The state directory {path} cannot be used: {reason}. {advice}")


# -- the disk ------------------------------------------------------------------------------------


def _sign(descriptor: int) -> None:
    """Write into a lock whose it is."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    os.fsync(descriptor)


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_session_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
