"""The processes that run, on disk, so that a successor of ours can end those that outlive us.

They get a SIGTERM when we die, and a busy one takes seconds to heed it, a disowned child gets none.
The successor must not start a second process on a conversation meanwhile. A process is known by its
id and start together: an id alone may be somebody else's by now. What it has started is known by
the marker. That also begins with a name of the place that the directory is in, by which processes
are found that could not be listed, for a full disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from session_supervisor.agents.claude import configdir, proc
from session_supervisor.agents.claude.scratch import remove_left

_log = logging.getLogger(__name__)

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_GENTLE_S = 3.0
"""Seconds from SIGTERM to SIGKILL. A busy CLI leaves its transcript whole in that time."""

_KILL_S = 5.0
"""Seconds that killed processes have to be gone."""

_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of the manifest.

    Attributes:
        marker: What the process and all that it starts carry.
        pid: Its id; 0 before it was started.
        started: When it was, in ticks since the machine was.
        boot: Which start of the machine that is.
        scratch: Its directory for temporary files.
    """

    marker: str
    pid: int = 0
    started: int = 0
    boot: str = ""
    scratch: str = ""


_LISTED = TypeAdapter(Listed)


class Manifest:
    """A directory with a file for each process."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Name the directory; it is made when it is needed."""
        self._folder = Path(folder)

    def new_marker(self) -> str:
        """Return one for a process that is to be started."""
        return f"{self._origin()}{uuid.uuid4()}"

    async def enter(self, marker: str, *, scratch: str, pid: int = 0) -> None:
        """List a process: before it is started, and again when it has an id.

        Where that fails, for a full disk, it is not worth a session: there is a word in the log.
        """
        try:
            await asyncio.to_thread(self._enter, marker, scratch, pid)
        except OSError:
            _log.exception("A process cannot be listed in %s", self._folder)

    async def leave(self, marker: str) -> None:
        """Strike a process that is gone, with all that it had started."""
        try:
            await asyncio.to_thread(self._path(marker).unlink, missing_ok=True)
        except OSError:
            _log.exception("A process cannot be struck from %s", self._folder)

    def leave_now(self, marker: str) -> None:
        """Strike one that was not started."""
        with contextlib.suppress(OSError):
            self._path(marker).unlink(missing_ok=True)

    async def recover(self) -> int:
        """End what a killed predecessor left, gently at first; return how many processes.

        Only one of us may use the directory, and none of ours may run yet.

        Raises:
            OSError: The directory cannot be read, or there is no descriptor to look with.
        """
        return await asyncio.to_thread(self._recover)

    # In a thread

    def _origin(self) -> str:
        """Return what our markers begin with; nothing where there is no place yet.

        The path alone would not do: containers that see each other's processes may have the same.
        """
        try:
            place = self._folder.parent.stat()
        except OSError:
            return ""
        name = f"{place.st_dev} {place.st_ino}"
        return f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}-"

    def _path(self, marker: str) -> Path:
        return self._folder / f"{marker}.json"

    def _enter(self, marker: str, scratch: str, pid: int) -> None:
        process = proc.look(pid) if pid else None
        listed = Listed(
            marker=marker,
            pid=pid,
            started=process.started if process else 0,
            boot=_boot(),
            scratch=scratch,
        )
        configdir.make(str(self._folder))
        path = self._path(marker)
        draft = path.with_suffix(".new")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_LISTED.dump_json(listed))
        draft.replace(path)

    def _recover(self) -> int:
        left = self._left()
        boot = _boot()
        live = {one.pid: one.started for one in left if one.pid and one.boot == boot}
        markers = {one.marker for one in left if one.boot == boot} | self._unlisted()
        ended: set[int] = set()
        if markers:
            _signal(_remaining(live, markers, ended), signal.SIGTERM)
            _wait(live, markers, ended, _GENTLE_S)
            deadline = time.monotonic() + _KILL_S
            while remaining := _remaining(live, markers, ended):
                if time.monotonic() > deadline:
                    # It waits for the kernel, and cannot do anything before it dies.
                    _log.error("Processes of a predecessor cannot be killed: %s", remaining)
                    break
                _signal(remaining, signal.SIGKILL)
                time.sleep(_PAUSE_S)
        for one in left:
            remove_left(one.scratch)
            self._path(one.marker).unlink(missing_ok=True)
        return len(ended)

    def _unlisted(self) -> set[str]:
        origin = self._origin()
        found = {one.marker for one in proc.everybody().values()} if origin else set[str]()
        return {marker for marker in found if marker.startswith(origin)}

    def _left(self) -> list[Listed]:
        if not self._folder.is_dir():
            return []
        for draft in self._folder.glob("*.new"):
            draft.unlink(missing_ok=True)
        return [_read(path) for path in self._folder.glob("*.json")]


def _read(path: Path) -> Listed:
    with contextlib.suppress(ValueError):
        listed = _LISTED.validate_json(path.read_bytes())
        if listed.marker == path.stem:
            return listed
    # Damaged, but its name is the marker, which is enough to find what carries it.
    return Listed(marker=path.stem, boot=_boot())


def _remaining(live: dict[int, int], markers: Collection[str], ended: set[int]) -> list[int]:
    everybody = proc.everybody()
    roots = proc.the_same(everybody, live)
    remaining = proc.family(everybody, markers=markers, roots=roots)
    ended.update(remaining)
    return remaining


def _wait(
    live: dict[int, int], markers: Collection[str], ended: set[int], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while _remaining(live, markers, ended) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def _signal(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
