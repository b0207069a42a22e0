"""Stores that are not well."""

from __future__ import annotations

import asyncio

from session_supervisor.errors import StoreError
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.records import Batch, Lease, SessionRecord


class HardStore(MemoryStore):
    """A store that is slow, or fails, on request."""

    def __init__(
        self,
        *,
        append_s: float = 0.0,
        acquire_s: float = 0.0,
        erase_s: float = 0.0,
        durable: bool = False,
    ) -> None:
        super().__init__()
        self._durable = durable
        self.append_s, self.acquire_s, self.erase_s = append_s, acquire_s, erase_s
        self.answer_s = 0.0
        """Seconds that it takes to say that it has appended, after it has."""
        self.fails: set[str] = set()
        self.bad_appends = 0
        """So many of the next fail."""

    @property
    def durable(self) -> bool:
        return self._durable

    async def acquire(self, session_id: str) -> Lease:
        await self._suffer("acquire", self.acquire_s)
        return await super().acquire(session_id)

    async def create(self, session: SessionRecord, *, first: Batch | None = None) -> Lease:
        await self._suffer("acquire", self.acquire_s)
        return await super().create(session, first=first)

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        await self._suffer("append", self.append_s)
        if self.bad_appends:
            self.bad_appends -= 1
            raise StoreError("the disk has a bad block")
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)
        await asyncio.sleep(self.answer_s)

    async def erase(self, session_id: str, *, claims: bool = False) -> None:
        await self._suffer("erase", self.erase_s)
        await super().erase(session_id, claims=claims)

    async def _suffer(self, what: str, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)
        if what in self.fails:
            raise StoreError("the disk is full")
