"""Private directories: where a session works when its caller names no place.

A directory is allotted before any process runs in it, and outlives every one of them: an agent
finds a conversation again by the directory that it was held in.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from session_supervisor.errors import NoWorkspace

logger = logging.getLogger(__name__)


class Workspaces(Protocol):
    """Allots directories, and takes them back."""

    async def allot(self, session_id: str) -> Path:
        """Make a directory that is this session's alone, and return its absolute path.

        Raises:
            NoWorkspace: It cannot be made.
        """
        ...

    async def release(self, directory: Path) -> None:
        """Remove a directory with all that is in it; nothing happens if it is gone."""
        ...

    async def aclose(self) -> None:
        """Remove what was only made for as long as this lives."""
        ...


class PrivateDirectories:
    """Directories below one root, readable by this user only.

    Args:
        root: Where they are; None makes a temporary root, which goes with `aclose`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = None if root is None else root.absolute()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    async def allot(self, session_id: str) -> Path:
        """See `Workspaces.allot`."""
        try:
            if self._root is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="session-supervisor-")
                self._root = Path(self._temporary.name)
            directory = self._root / session_id
            # A few system calls: a thread would take longer to hand them to.
            directory.mkdir(mode=0o700, parents=True)
        except OSError as error:
            logger.exception("no directory can be made for session %s", session_id)
            raise NoWorkspace(error.strerror or type(error).__name__) from error
        return directory

    async def release(self, directory: Path) -> None:
        """See `Workspaces.release`."""
        await anyio.to_thread.run_sync(_remove, directory)

    async def aclose(self) -> None:
        """See `Workspaces.aclose`."""
        if self._temporary is not None:
            temporary, self._temporary, self._root = self._temporary, None, None
            await anyio.to_thread.run_sync(temporary.cleanup)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
