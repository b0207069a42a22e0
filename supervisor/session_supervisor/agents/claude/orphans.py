"""Finding and killing what a process has started, however far that has run from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection

from session_supervisor.agents.claude import proc

_log = logging.getLogger(__name__)

_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds after each scan that found something, for it to be gone; then the next scan also finds
what was forked meanwhile."""


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
                if error.errno not in proc.EXHAUSTED or pause_s == _PAUSES_S[-1]:
                    raise
            await asyncio.sleep(pause_s)
        # What waits for the kernel dies as soon as that lets it go on.
        _log.error("Processes that a session has started cannot be killed just now")


def kill_marked(markers: Collection[str]) -> list[int]:
    """Kill every process of ours that carries one of the markers, and theirs; return their ids."""
    found = marked(markers)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


def marked(markers: Collection[str]) -> list[int]:
    """Return the ids of the processes that carry one of the markers, and of their children.

    Processes that have ended and wait for their parent are not among them.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    return proc.family(proc.everybody(), markers=markers)
