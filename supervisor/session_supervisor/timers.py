"""Named deadlines of one actor, and the one thing it sleeps on."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable


class Timers:
    """Deadlines by name. Few at a time, set far more often than they fire."""

    def __init__(self) -> None:
        self._deadlines: dict[Hashable, float] = {}

    def set(self, name: Hashable, at: float) -> None:
        """Fire `name` at a monotonic time in seconds, in place of when it was to fire."""
        self._deadlines[name] = at

    def clear(self, *names: Hashable) -> None:
        """Never mind; also for names that are not set."""
        for name in names:
            self._deadlines.pop(name, None)

    def is_set(self, name: Hashable) -> bool:
        """Return whether `name` is still to fire."""
        return name in self._deadlines

    def at(self, name: Hashable) -> float | None:
        """Return when `name` is to fire, or None if it is not set."""
        return self._deadlines.get(name)

    def next(self) -> tuple[Hashable, float] | None:
        """Return the earliest name and its time, or None without any."""
        if not self._deadlines:
            return None
        return min(self._deadlines.items(), key=lambda item: item[1])

    def pop_due(self, now: float) -> Hashable | None:
        """Remove and return the earliest name that is due, or None."""
        earliest = self.next()
        if earliest is None or earliest[1] > now:
            return None
        del self._deadlines[earliest[0]]
        return earliest[0]


class Wakeup:
    """A bell that one task sleeps by. Rung while nobody sleeps, it is heard by the next."""

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the sleeper, or keep the next one from falling asleep."""
        self._rung = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def wait(self, until: float | None) -> None:
        """Sleep until the bell rings.

        Args:
            until: Event loop time, in seconds, after which to wake in any case; None for none.
        """
        loop = asyncio.get_running_loop()
        if not self._rung:
            self._sleeper = loop.create_future()
            alarm = None if until is None else loop.call_at(until, self.ring)
            try:
                await self._sleeper
            finally:
                self._sleeper = None
                if alarm is not None:
                    alarm.cancel()
        self._rung = False
