"""A store in memory: gone with the process, bounded by a retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from session_supervisor.config import Retention
from session_supervisor.errors import Fenced, SequenceConflict
from session_supervisor.events import Event
from session_supervisor.window import Window


@dataclass(slots=True)
class _Log:
    window: Window
    fence: int = 0
    last_seq: int = 0


class MemoryStore:
    """Keeps the newest events of every session in memory.

    Args:
        retention: How many events, and how much text, to keep of each session.
    """

    def __init__(self, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._logs: dict[str, _Log] = {}

    async def acquire(self, session_id: str) -> int:
        """See `Store.acquire`."""
        log = self._logs.get(session_id)
        if log is None:
            log = self._logs[session_id] = _Log(
                Window(max_events=self._retention.events, max_weight=self._retention.event_bytes)
            )
        log.fence += 1
        return log.fence

    async def append(
        self, session_id: str, *, fence: int, expected_seq: int, events: Sequence[Event]
    ) -> None:
        """See `Store.append`."""
        log = self._logs.get(session_id)
        if log is None or fence != log.fence:
            raise Fenced(
                f"Session {session_id!r} has another writer, or was erased: this one must stop."
            )
        follows_on = all(event.seq == expected_seq + n for n, event in enumerate(events, start=1))
        if expected_seq != log.last_seq or not follows_on:
            raise SequenceConflict(
                f"The log of session {session_id!r} ends at {log.last_seq}; it cannot be "
                f"extended from {expected_seq} by {[event.seq for event in events][:8]}."
            )
        log.window.extend(events)
        log.last_seq += len(events)

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """See `Store.read`."""
        log = self._logs.get(session_id)
        return () if log is None else log.window.read(after=after, limit=limit)

    async def erase(self, session_id: str) -> None:
        """See `Store.erase`."""
        self._logs.pop(session_id, None)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._logs.clear()
