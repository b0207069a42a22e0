"""Private directories: where a session works when its caller names no place.

A directory is allotted before any process runs in it, and outlives every one of them: an agent
finds a conversation again by the directory that it was held in.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from session_supervisor.errors import NoWorkspace

logger = logging.getLogger(__name__)


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
        return self._root

    async def release(self, directory: Path) -> None:
        """See `Workspaces.release`."""
        try:
            await anyio.to_thread.run_sync(_remove, directory)
        except OSError:
            logger.exception("the directory %s could not be removed", directory)
            raise

    async def aclose(self) -> None:
        """See `Workspaces.aclose`."""
        root, self._root = self._root, None
        if root is None or self._given is not None:
            return
        if self._keep:
            with suppress(OSError):  # it is not empty
                root.rmdir()
        else:
            with suppress(OSError):  # temporary: the system removes it, some day
                await anyio.to_thread.run_sync(_remove, root)


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
