"""An event that happens once, and costs next to nothing until somebody waits for it.

There is one for each turn that is kept and several for each session, most of which nobody ever
waits for. An `asyncio.Event` takes 800 bytes from the start.
"""

from __future__ import annotations

import asyncio


class Latch:
    """Closed at first, then open for ever."""

    __slots__ = ("_event", "_open")

    def __init__(self) -> None:
        self._open = False
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._open

    def set(self) -> None:
        """Open it and let everybody go on who waits; again does no harm."""
        self._open = True
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Return once it is open."""
        if self._open:
            return
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()
