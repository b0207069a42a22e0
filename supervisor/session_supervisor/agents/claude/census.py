"""What processes a session has, and what memory they take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from session_supervisor.agents.claude import proc
from session_supervisor.agents.port import Tree

_log = logging.getLogger(__name__)


class Census:
    """Counts processes. Those that are asked for at the same time share one look at /proc."""

    def __init__(self) -> None:
        """Begin with nobody asking."""
        self._looking: asyncio.Task[Mapping[int, proc.Process]] | None = None

    async def tree(self, marker: str, pid: int | None) -> Tree:
        """Return what carries a marker, and what that has started.

        Args:
            marker: Which.
            pid: The process that all of it descends from; None if that has ended.
        """
        try:
            processes = await self._everybody()
            roots = () if pid is None else (pid,)
            pids = proc.family(processes, markers=(marker,), roots=roots)
            return Tree(pids=tuple(pids), pss_bytes=await asyncio.to_thread(_memory, pids))
        except OSError:
            _log.warning("The processes of a session cannot be counted", exc_info=True)
            return Tree()

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


def _memory(pids: list[int]) -> int:
    return sum(map(proc.memory, pids))
