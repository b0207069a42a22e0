"""Time as a parameter, so that tests can run on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """The two times that a supervisor needs.

    Attributes:
        monotonic: Seconds on the clock that the event loop's timers run on.
        now: The time of day, UTC.
    """

    monotonic: Callable[[], float] = _loop_time
    now: Callable[[], datetime] = _utc_now

    def here(self) -> Clock:
        """Return it for the event loop that runs, which it then need not look for each time.

        Before Python 3.12, to look costs a system call.
        """
        if self.monotonic is not _loop_time:
            return self
        return replace(self, monotonic=asyncio.get_running_loop().time)
