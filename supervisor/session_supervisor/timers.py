"""Named deadlines of one actor, and the one thing it sleeps on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Any

TICK_S = 0.001
"""How much too early a timer of an event loop may fire: uvloop counts in milliseconds."""


def is_due(at: float, now: float) -> bool:
    """Return whether a time has come, as far as an event loop can tell.

    Who takes a timer that fired for one that is not due yet asks again until the clock has moved.
    """
    return at <= now + TICK_S


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

    def earliest(self) -> float | None:
        """Return the earliest time, or None without any."""
        return min(self._deadlines.values(), default=None)

    def is_due(self, now: float) -> bool:
        """Return whether there is one that is due."""
        return bool(self._deadlines) and is_due(min(self._deadlines.values()), now)

    def pop_due(self, now: float) -> Hashable | None:
        """Remove and return the earliest name that is due, or None."""
        if not self.is_due(now):
            return None
        name = min(self._deadlines, key=self._deadlines.__getitem__)
        del self._deadlines[name]
        return name


WOKEN_AT_ONCE = 8
"""Most sleepers that go on in a step of the event loop: as a rule a millisecond or two of work."""

LONG_STEP_S = 0.003
"""Seconds; after a step that took longer half as many go on. uvloop counts in milliseconds."""


class Gate:
    """Lets a few sleepers go on in each step of the event loop, in the order in which they woke.

    Whatever the loop finds to do, it does before it looks at anything new. So if a thousand
    sessions are woken at once, a request that comes then would wait for all of them, and that for
    each step that it takes. Those who wait here lose nothing by it: there is one processor core
    for all.

    One who has been kept waiting has more to do than usual, and there is more than one gate. So
    fewer go on for as long as steps are long, whoever makes them so.

    For one event loop.

    Args:
        most: How many go on in a step, unless steps are long.
    """

    def __init__(self, most: int = WOKEN_AT_ONCE) -> None:
        self._most = self._allowed = self.room = most
        self._opened = 0.0
        self._waiting = deque[tuple[asyncio.Future[Any], Any, BaseException | None]]()

    def answer(
        self, sleeper: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        """Let a sleeper go on with what it waits for, at once if there is room."""
        if self.room:
            self._let_on(sleeper, result, error)
        else:
            self.wait(sleeper, result, error)

    def wait(
        self, sleeper: asyncio.Future[Any], result: Any = None, error: BaseException | None = None
    ) -> None:
        """Let a sleeper go on for whom there is no room, as soon as it is its turn."""
        if not self._waiting:
            loop = sleeper.get_loop()
            self._opened = loop.time()
            loop.call_soon(self._open, loop)
        self._waiting.append((sleeper, result, error))

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make room, in another step."""
        now = loop.time()
        if now - self._opened >= LONG_STEP_S:
            self._allowed = max(1, self._allowed // 2)
        elif self._allowed < self._most:
            self._allowed += 1
        self._opened = now
        self.room = self._allowed
        while self._waiting and self.room:
            self._let_on(*self._waiting.popleft())
        if self._waiting:
            loop.call_soon(self._open, loop)

    def _let_on(
        self, sleeper: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        if sleeper.done():  # it has given up
            return
        self.room -= 1
        if error is None:
            sleeper.set_result(result)
        else:
            sleeper.set_exception(error)


class Wakeup:
    """A bell that one task sleeps by. Rung while nobody sleeps, it is heard by the next.

    Its alarm stays set while the sleeper's next time is no earlier: one who is woken a thousand
    times before its time has come needs one timer for it, and not a thousand.

    Args:
        gate: What the sleeper has to pass once it is woken; None: it goes on at once.
    """

    __slots__ = ("_alarm", "_alarm_at", "_gate", "_loop", "_rung", "_sleeper")

    def __init__(self, gate: Gate | None = None) -> None:
        self._gate = gate
        self._rung = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def ring(self) -> None:
        """Wake the sleeper, or keep the next one from falling asleep."""
        if self._rung:  # whoever slept then is on its way
            return
        self._rung = True
        if self._sleeper is not None and not self._sleeper.done():
            # Here and not in a method of the gate: it happens for every piece of text.
            if self._gate is None:
                self._sleeper.set_result(None)
            elif self._gate.room:
                self._gate.room -= 1
                self._sleeper.set_result(None)
            else:
                self._gate.wait(self._sleeper)

    def mute(self) -> None:
        """Set no alarm any more; for a bell that nobody sleeps by again."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def wait(self, until: float | None) -> None:
        """Sleep until the bell rings.

        Args:
            until: Event loop time, in seconds, after which to wake in any case; None for none. It
                may ring before that, for a time that was given earlier.
        """
        if not self._rung:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            if until is None:
                self.mute()
            elif self._alarm is None or until < self._alarm_at:
                self.mute()
                self._alarm = self._loop.call_at(until, self._alarmed)
                self._alarm_at = until
            self._sleeper = self._loop.create_future()
            try:
                await self._sleeper
            except BaseException:
                self.mute()
                raise
            finally:
                self._sleeper = None
        self._rung = False

    def _alarmed(self) -> None:
        self._alarm = None
        self.ring()
