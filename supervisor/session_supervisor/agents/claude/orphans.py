"""Finding and killing what a process has started, however far that has run from it.

The shells of the CLI's tools have sessions of their own, and a disowned child has no parent any
more: neither process groups nor the process tree find them. What they cannot help having is the
environment that they were started with, and in it our marker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Collection
from pathlib import Path

from session_supervisor.agents.claude.launch import MARKER

_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds after each scan that found something, for it to be gone; then the next scan also finds
what was forked meanwhile."""


_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of the process that was looked at."""


class Sweeper:
    """Kills by marker. Sweeps that are asked for at the same time share their scans of /proc."""

    def __init__(self) -> None:
        """Begin with nothing to do."""
        self._wanted: set[str] = set()
        self._scanning = asyncio.Lock()

    async def sweep(self, marker: str) -> None:
        """Kill every process that carries a marker; return when none is found any more.

        Raises:
            OSError: They cannot be looked for: there is no file descriptor for some seconds. The
                next sweep looks for them as well.
        """
        self._wanted.add(marker)
        async with self._scanning:
            if marker in self._wanted:  # or the one before has done it along with its own
                await self._sweep_wanted()

    async def sweep_rest(self) -> None:
        """Kill what sweeps were asked for that could not look; see `sweep`."""
        async with self._scanning:
            if self._wanted:
                await self._sweep_wanted()

    async def _sweep_wanted(self) -> None:
        wanted = frozenset(self._wanted)
        await self._sweep(wanted)
        self._wanted -= wanted

    async def _sweep(self, markers: Collection[str]) -> None:
        for pause_s in _PAUSES_S:
            try:
                if not await asyncio.to_thread(kill_marked, markers):
                    return
            except OSError as error:
                # No descriptor to be had just now; to go on as if nothing were left would be wrong.
                if error.errno not in _EXHAUSTED or pause_s == _PAUSES_S[-1]:
                    raise
            await asyncio.sleep(pause_s)


def kill_marked(markers: Collection[str]) -> list[int]:
    """Kill every process of ours whose environment has one of the markers; return their ids."""
    found = marked(markers)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


def marked(markers: Collection[str]) -> list[int]:
    """Return the ids of the processes whose environment has one of the markers.

    Processes that have ended and wait for their parent are not among them. Without /proc there
    is nothing to find.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    entries = [f"{MARKER}={marker}".encode() for marker in markers]
    found: list[int] = []
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return found
    for name in names:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            variables = Path("/proc", name, "environ").read_bytes().split(b"\0")
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            continue  # gone, or not ours
        if any(entry in variables for entry in entries):
            found.append(int(name))
    return found
