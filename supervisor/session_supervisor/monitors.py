"""Monitors: an embedder hears when sessions go down or are restarted.

Named after Erlang's: a monitor watches without being linked to what it watches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self, TypeAlias

from session_supervisor.actor import Restarted
from session_supervisor.messages import CloseReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """A session has ended, or has failed for good.

    Attributes:
        session_id: Which.
        owner: Whose it was.
        reason: Why it ended; None when it failed and is still there to be closed.
        failure: What made it fail, if it did.
    """

    session_id: str
    owner: str
    reason: CloseReason | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """The listener was too slow, and this many notices were dropped."""

    count: int


Notice: TypeAlias = Down | Restarted | Missed
"""What a monitor hears."""

BACKLOG = 1_024
"""Notices kept for a listener who does not read."""


class Monitor:
    """One listener. Iterating gives notices as they come, and ends with the supervisor."""

    def __init__(self) -> None:
        self._backlog: deque[Notice] = deque()
        self._missed = 0
        self._closed = False
        self._changed = asyncio.Event()

    def hear(self, notice: Notice) -> None:
        """Take a notice; for the supervisor."""
        if len(self._backlog) >= BACKLOG:
            self._backlog.popleft()
            self._missed += 1
        self._backlog.append(notice)
        self._changed.set()

    def close(self) -> None:
        """Let the listener end once it has heard everything; for the supervisor."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notice:
        while not self._backlog:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Missed(missed)
        return self._backlog.popleft()
