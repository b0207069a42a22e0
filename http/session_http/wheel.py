"""One timer for all who want to be looked at from time to time.

A stream looks after its client every few seconds, and there are thousands of them. A timer for
each would be set anew with whatever a stream says. Here each has a place on a wheel that turns by
the quarter of a second, stays there, and says only when it is its turn when it wants to be looked
at next.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TypeAlias

from session_supervisor.timers import TICK_S, is_due

SPOKE_S = 0.25
"""Seconds between two places: how much later than it wants one may be looked at."""

Look: TypeAlias = Callable[[float], float]
"""Is told the event loop's time, and returns when it wants to be called next. It must not raise."""


class Wheel:
    """Who wants to be looked at, and when."""

    def __init__(self) -> None:
        self._spokes: dict[int, dict[Look, None]] = {}
        self._places: dict[Look, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, look: Look, at: float) -> None:
        """Call `look` at a time of the event loop, then whenever it says, until it is removed."""
        place = math.ceil((at - TICK_S) / SPOKE_S)
        self._places[look] = place
        self._spokes.setdefault(place, {})[look] = None
        if self._timer is None or place < self._next:
            self._set(place)

    def remove(self, look: Look) -> None:
        """Call it no more; again does no harm."""
        place = self._places.pop(look, None)
        if place is None:
            return
        spoke = self._spokes[place]
        del spoke[look]
        if not spoke:
            del self._spokes[place]
        if not self._places and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, place: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = place
        self._timer = asyncio.get_running_loop().call_at(place * SPOKE_S, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for place in sorted(self._spokes):
            if not is_due(place * SPOKE_S, now):
                break
            for look in tuple(self._spokes.get(place, ())):
                if self._places.get(look) != place:  # it was removed by one before it
                    continue
                at = look(now)
                if self._places.get(look) == place:  # nor has it gone by itself
                    self.remove(look)
                    self.add(look, max(at, now + SPOKE_S))
        if self._spokes:
            self._set(min(self._spokes))
