"""What processes a session has, and what memory they take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from session_supervisor.agents.claude import proc
from session_supervisor.agents.port import Member, Tree

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
"""Seconds that a look may take: it has to wait for a process that maps memory just then."""


class Census:
    """Counts processes. Those that are asked for at the same time share one look at /proc."""

    def __init__(self) -> None:
        """Begin with nobody asking."""
        self._looking: asyncio.Task[Mapping[int, proc.Process]] | None = None
        # One thread at a time: more of them only take the event loop's turns away.
        self._measuring = asyncio.Lock()

    async def tree(self, marker: str, pid: int | None) -> Tree:
        """Return what carries a marker, and what that has started.

        Args:
            marker: Which.
            pid: The process that all of it descends from; None if that has ended.
        """
        try:
            async with asyncio.timeout(_LOOK_S):
                processes = await self._everybody()
                roots = () if pid is None else (pid,)
                pids = proc.family(processes, markers=(marker,), roots=roots)
                async with self._measuring:
                    return await asyncio.to_thread(_tree, processes, pids, proc.memory)
        except OSError:  # a TimeoutError is one
            _log.warning("The processes of a session cannot be counted", exc_info=True)
            return Tree()

    async def leftovers(self, marker: str, pid: int) -> Tree:
        """Return the same as of now, with the memory that each has for itself: that is known.

        Args:
            marker: Which.
            pid: The process that all of it descends from.

        Raises:
            OSError: They cannot be looked for just now.
        """
        # Not one that others have begun: it may have passed by what was there when this is asked.
        return await asyncio.to_thread(_leftovers, marker, pid)

    async def _everybody(self) -> Mapping[int, proc.Process]:
        # Who asks while others wait gets their answer, which is some milliseconds old.
        if self._looking is None:
            self._looking = asyncio.create_task(
                asyncio.to_thread(proc.everybody), name="claude census"
            )
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, looking: asyncio.Task[Mapping[int, proc.Process]]) -> None:
        self._looking = None
        if not looking.cancelled():
            looking.exception()  # whoever asked may not wait any more


def _leftovers(marker: str, pid: int) -> Tree:
    processes = proc.everybody()
    pids = proc.family(processes, markers=(marker,), roots=(pid,))
    return _tree(processes, pids, proc.own_memory)


def _tree(
    processes: Mapping[int, proc.Process], pids: Collection[int], weigh: Callable[[int], int]
) -> Tree:
    return Tree(
        members=tuple(
            Member(
                pid=pid,
                parent=processes[pid].parent,
                name=processes[pid].name,
                pss_bytes=weigh(pid),
            )
            for pid in pids
        )
    )
