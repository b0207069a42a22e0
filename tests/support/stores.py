"""Stores that are not well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from session_supervisor.errors import StoreError
from session_supervisor.events import Event
from session_supervisor.stores.memory import MemoryStore


class HardStore(MemoryStore):
    """A store that is slow, or fails, on request."""

    def __init__(
        self, *, append_s: float = 0.0, acquire_s: float = 0.0, erase_s: float = 0.0
    ) -> None:
        super().__init__()
        self.append_s, self.acquire_s, self.erase_s = append_s, acquire_s, erase_s
        self.fails: set[str] = set()

    async def acquire(self, session_id: str) -> int:
        await self._suffer("acquire", self.acquire_s)
        return await super().acquire(session_id)

    async def append(
        self, session_id: str, *, fence: int, expected_seq: int, events: Sequence[Event]
    ) -> None:
        await self._suffer("append", self.append_s)
        await super().append(session_id, fence=fence, expected_seq=expected_seq, events=events)

    async def erase(self, session_id: str) -> None:
        await self._suffer("erase", self.erase_s)
        await super().erase(session_id)

    async def _suffer(self, what: str, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)
        if what in self.fails:
            raise StoreError("the disk is full")
